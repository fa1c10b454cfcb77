/**
 * The C interface of an MPI library through koffi. The standard fixes functions, not what handles and constants are: those of Open MPI (pointers to symbols of
 * the library) and of the MPICH family (integers that its members have agreed on) are known here.
 *
 * @see MPI: A Message-Passing Interface Standard, version 3.1; the MPICH ABI compatibility initiative
 */

import { createRequire } from "node:module";
import { CommError } from "../communicator.js";
import type { MpiStart } from "./environment.js";

/** An MPI_Comm. */
export type Handle = number;

interface Koffi {
  load(path: string, options?: { global?: boolean }): Library;
  address(value: unknown): bigint;
  decode(address: bigint, type: string): unknown;
}
interface Library {
  func(signature: string): (...args: number[]) => number;
  symbol(name: string): unknown;
}

/** A library with its handles and constants. Arguments are addresses where C has pointers; results are error codes, 0 for none. */
export interface Mpi {
  vendor: "Open MPI" | "MPICH";
  /** What the library says of itself, its first line. */
  version: string;
  path: string;
  world: Handle;
  byte: number;
  errorsReturn: number;
  anySource: number;
  anyTag: number;
  tagBound: number;
  /** Words (int32) of a request and of a status, and the places in the latter of source, tag, error and of the count of bytes (two words). */
  requestWords: 1 | 2;
  status: { words: number; source: number; tag: number; error: number; count: number };
  /** The high bits of a count share their word with a flag in its lowest bit. */
  countHigh: (word: number) => number;
  address(array: ArrayBufferView): number;
  /** The int at an address. */
  intAt(address: bigint): number;
  /** Gives the core to another thread that wants it. */
  yield(): void;
  /** Has the system end this process after so many seconds, whatever it is in. */
  alarm(seconds: number): void;
  call: Record<keyof typeof SIGNATURES, (...args: number[]) => number>;
}

/** P stands for an address, C for a communicator, T for a datatype, E for an error handler. */
const SIGNATURES = {
  MPI_Get_library_version: "P P",
  MPI_Initialized: "P",
  MPI_Init_thread: "P P int P",
  MPI_Comm_rank: "C P",
  MPI_Comm_size: "C P",
  MPI_Comm_dup: "C P",
  MPI_Comm_split: "C int int P",
  MPI_Comm_free: "P",
  MPI_Comm_set_errhandler: "C E",
  MPI_Comm_get_attr: "C int P P",
  MPI_Isend: "P int T int int C P",
  MPI_Issend: "P int T int int C P",
  MPI_Irecv: "P int T int int C P",
  MPI_Testsome: "int P P P P",
  MPI_Iprobe: "int int C P P",
  MPI_Error_class: "int P",
  MPI_Error_string: "int P P",
  MPI_Abort: "C int",
  MPI_Finalize: "",
} as const;

const CANDIDATES: Record<string, Record<MpiStart["vendor"], readonly string[]>> = {
  darwin: {
    "Open MPI": ["/opt/homebrew/opt/open-mpi/lib/libmpi.dylib", "/usr/local/opt/open-mpi/lib/libmpi.dylib", "libmpi.dylib"],
    MPICH: ["/opt/homebrew/opt/mpich/lib/libmpi.dylib", "/usr/local/opt/mpich/lib/libmpi.dylib", "libmpi.dylib"],
  },
  other: {
    "Open MPI": ["libmpi.so.40", "libmpi.so.80", "libmpi.so"],
    MPICH: ["libmpich.so.12", "libmpi.so.12", "libmpi.so"],
  },
};

export const SYSTEM_LIBRARY = process.platform === "darwin" ? "libSystem.B.dylib" : "libc.so.6";

const PACKAGES = { "Open MPI": "apt install libopenmpi3, brew install open-mpi", MPICH: "apt install libmpich12, brew install mpich" };

/**
 * Loads the library of the mpirun that started this process.
 * @param path a library to use whatever its name; undefined: those by which it goes
 * @throws CommError when koffi is missing, no library loads, or it is of another vendor
 */
export function loadMpi(start: MpiStart, path: string | undefined): Mpi {
  const koffi = loadKoffi(start);
  mendEnvironment();
  const failures: string[] = [];
  const paths = path !== undefined ? [path] : (CANDIDATES[process.platform] ?? CANDIDATES["other"]!)[start.vendor];
  for (const candidate of paths) {
    let mpi: Mpi;
    try {
      // Open MPI loads parts of itself that look for its names among all that are loaded.
      mpi = bind(koffi, koffi.load(candidate, { global: true }), candidate);
    } catch (error) {
      failures.push(`${candidate}: ${(error as Error).message.split("\n")[0]}`);
      continue;
    }
    if (mpi.vendor === start.vendor) return mpi;
    failures.push(`${candidate}: it is ${mpi.version}`);
  }
  const found = failures.some((failure) => failure.includes(": it is "));
  throw new CommError(
    `communicator: expected the MPI library of the mpirun that started this process (${start.vendor}), got ${found ? "another vendor's" : "none"} (${failures.join("; ")}). ${
      found ? "Start with that library's own mpirun, or set SPARSEGATE_MPI to the path of mpirun's library" : `Install it (${PACKAGES[start.vendor]}), or set SPARSEGATE_MPI to its path`}.`,
  );
}

/** What the libraries read as they begin, and what else would take a Node process down. */
function mendEnvironment(): void {
  // To learn of memory that is given back, they write over the code of munmap and its like, while V8's threads are in it: crashes, now and then or always.
  process.env["UCX_MEM_EVENTS"] ??= "no";
  process.env["OMPI_MCA_memory"] ??= "^patcher";
  // They take the signal by which V8 notices an access beyond a WebAssembly memory.
  process.env["UCX_ERROR_SIGNALS"] ??= "";
}

function loadKoffi(start: MpiStart): Koffi {
  try {
    return createRequire(import.meta.url)("koffi") as Koffi;
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const got = code === "MODULE_NOT_FOUND" ? "none" : `one that does not load (${message.split("\n")[0]})`;
    throw new CommError(`communicator: expected the optional package koffi, by which MPI is called in a process that mpirun (${start.vendor}) started, got ${got}. Run npm install koffi.`, { cause: error });
  }
}

function bind(koffi: Koffi, library: Library, path: string): Mpi {
  const address = (value: unknown): number => Number(koffi.address(value));
  const symbol = (name: string): number | undefined => {
    try {
      return Number(library.symbol(name) as bigint);
    } catch {
      return undefined;
    }
  };
  const world = symbol("ompi_mpi_comm_world");
  const open = world !== undefined;
  const kinds: Record<string, string> = open ? { P: "uintptr_t", C: "uintptr_t", T: "uintptr_t", E: "uintptr_t" } : { P: "uintptr_t", C: "int", T: "int", E: "int" };
  const call = {} as Mpi["call"];
  for (const [name, kind] of Object.entries(SIGNATURES)) {
    const args = kind.split(" ").filter(Boolean).map((word) => kinds[word] ?? word);
    call[name as keyof typeof SIGNATURES] = library.func(`int ${name}(${args.join(", ")})`);
  }
  const text = new Uint8Array(new ArrayBuffer(16384));
  const length = new Int32Array(new ArrayBuffer(8));
  call.MPI_Get_library_version(address(text), address(length));
  const version = new TextDecoder().decode(text.subarray(0, length[0])).split(/\n|, package/)[0]!.replace(/\s+/g, " ").trim();
  const common = { version, path, call, address, intAt: (at: bigint) => koffi.decode(at, "int") as number, ...system(koffi) };
  if (open) {
    return {
      ...common, vendor: "Open MPI", world: world!, byte: symbol("ompi_mpi_byte")!, errorsReturn: symbol("ompi_mpi_errors_return")!, anySource: -1, anyTag: -1, tagBound: 0,
      requestWords: 2, status: { words: 6, source: 0, tag: 1, error: 2, count: 4 }, countHigh: (word) => word,
    };
  }
  return {
    ...common, vendor: "MPICH", world: 0x44000000, byte: 0x4c00010d, errorsReturn: 0x54000001, anySource: -2, anyTag: -1, tagBound: 0x64400001,
    requestWords: 1, status: { words: 5, source: 2, tag: 3, error: 4, count: 0 }, countHigh: (word) => word >>> 1,
  };
}

/** Two calls of the system's own library, where they can be had. */
function system(koffi: Koffi): Pick<Mpi, "yield" | "alarm"> {
  try {
    const library = koffi.load(SYSTEM_LIBRARY);
    const [give, alarm] = [library.func("int sched_yield()"), library.func("unsigned int alarm(unsigned int)")];
    return { yield: () => void give(), alarm: (seconds) => void alarm(seconds) };
  } catch {
    return { yield: () => {}, alarm: () => {} };
  }
}
