/** Files that are whole or absent: written beside, flushed to the disk, then renamed; and file errors a user can act on. */

import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, statSync, writeSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { expectation, FileError } from "../core/errors.js";

/** One write call carries at most this many bytes: Node refuses 2 GiB, and a chunk that fits the cache is checksummed and written in one visit. */
export const chunkBytes = 4 << 20;

let temporaries = 0;

/**
 * Replaces or creates a file so that a reader, a crash or a kill sees the old content or the new one, never a part. Folders above
 * are created. What `path` held before stays when writing fails.
 * @param data text (written as UTF-8) or bytes; a view on shared memory is fine
 * @throws FileError when the disk is full, the folder is not writable, or `path` is a folder
 */
export function writeFileAtomic(path: string, data: string | Uint8Array): void {
  const bytes = typeof data === "string" ? Buffer.from(data, "utf8") : data;
  writeAtomic("writeFileAtomic", path, (fd) => writeAll(fd, bytes));
}

/**
 * As {@link writeFileAtomic}, the content written by `fill` through a file descriptor (opened for reading and writing), which it must not close.
 * @param where the function named at the head of error messages
 * @throws FileError as above; what `fill` throws passes through once the temporary file is gone
 */
export function writeAtomic<T>(where: string, path: string, fill: (fd: number) => T): T {
  const temporary = join(dirname(path), `.${basename(path)}.tmp-${process.pid}-${temporaries++}`);
  let fd = -1;
  try {
    makeFolder(dirname(path));
    fd = openSync(temporary, "wx+");
    const result = fill(fd);
    fsyncSync(fd);
    const open = fd;
    fd = -1; // close reports late write errors, and must not be tried twice
    closeSync(open);
    renameSync(temporary, path);
    fsyncFolder(dirname(path));
    return result;
  } catch (error) {
    if (fd !== -1) quietly(() => closeSync(fd));
    quietly(() => rmSync(temporary, { force: true }));
    throw fileError(where, path, "write", error);
  }
}

/** The process that left a temporary file of `writeAtomic` behind, by the file's name; undefined for any other name. */
export function temporaryWriter(name: string): number | undefined {
  const pid = /^\..+\.tmp-(\d+)-\d+$/.exec(name)?.[1];
  return pid === undefined ? undefined : Number(pid);
}

/** Makes a folder and those above it. By hand, because Node's `recursive` never returns where a folder that exists answers ENOENT, as /proc does. */
export function makeFolder(path: string): void {
  try {
    mkdirSync(path);
  } catch (error) {
    if (errorCode(error) === "ENOENT" && !existsSync(dirname(path))) {
      makeFolder(dirname(path));
      makeFolder(path);
    } else if (!statSync(path, { throwIfNoEntry: false })?.isDirectory()) throw error;
  }
}

/** Writes all bytes at `position`, or at the file's own position, in chunks; `each` sees every chunk before it is written. */
export function writeAll(
  fd: number,
  bytes: Uint8Array,
  position: number | null = null,
  each?: (chunk: Uint8Array) => void,
): void {
  for (let start = 0; start < bytes.length; start += chunkBytes) {
    const chunk = bytes.subarray(start, start + chunkBytes);
    each?.(chunk);
    for (let done = 0; done < chunk.length;) {
      done += writeSync(fd, chunk, done, chunk.length - done, position === null ? null : position + start + done);
    }
  }
}

/** Makes the names in a folder (new files, renames) durable. Does nothing where folders cannot be flushed, as on Windows. */
export function fsyncFolder(path: string): void {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    if (["EACCES", "EPERM", "EISDIR"].includes(errorCode(error))) return;
    throw error;
  }
  try {
    fsyncSync(fd);
  } catch (error) {
    if (!["EINVAL", "EPERM", "ENOTSUP", "EISDIR", "EBADF"].includes(errorCode(error))) throw error;
  } finally {
    closeSync(fd);
  }
}

/**
 * The FileError for a failed system call; any other error is returned as it is.
 * @param where the function the user called
 * @param verb what was tried with the file: "read", "write", "delete"
 */
export function fileError(where: string, path: string, verb: string, error: unknown): Error {
  const code = errorCode(error);
  if (!(error instanceof Error) || code === "" || error instanceof FileError)
    return error instanceof Error ? error : new Error(String(error));
  const what = hints.get(code);
  const hint = what === undefined ? error.message : verb === "read" && code === "ENOENT" ? "Is the path spelled right?" : what[1];
  return new FileError(expectation(where, `to ${verb} ${path}`, what === undefined ? code : `${code}: ${what[0]}`, hint), {
    cause: error,
  });
}

const hints = new Map<string, [meaning: string, hint: string]>([
  ["ENOSPC", ["no space left on the disk", "Free some space, or lower --save-total-limit; what was there before is untouched."]],
  ["EDQUOT", ["disk quota exceeded", "Free some space, or lower --save-total-limit; what was there before is untouched."]],
  ["EACCES", ["permission denied", "Choose another --output-dir, or change the permissions."]],
  ["EPERM", ["operation not permitted", "Choose another --output-dir, or change the permissions."]],
  ["EROFS", ["the file system is read-only", "Choose another --output-dir."]],
  ["ENOTDIR", ["a part of the path is a file, not a folder", "Choose another path, or move that file away."]],
  ["EEXIST", ["there is a file where a folder should be", "Choose another path, or move that file away."]],
  ["EISDIR", ["there is a folder where a file should be", "Choose another path, or move that folder away."]],
  ["ENOTEMPTY", ["there is a folder in the way", "Choose another path, or move that folder away."]],
  ["ENOENT", ["no such file or folder", "The folder cannot be created there; choose another path."]],
  ["EFBIG", ["the file would be longer than a file may be here", "Raise the limit (ulimit -f), or choose another --output-dir; what was there before is untouched."]],
  ["EMFILE", ["too many open files", "Raise the limit with ulimit -n."]],
  ["EIO", ["the disk reports an error", "Check the disk before you trust other files on it."]],
]);

/** The system's code of an error, such as "ENOSPC"; "" for an error of another kind. */
export function errorCode(error: unknown): string {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return typeof code === "string" && /^E[A-Z0-9]+$/.test(code) ? code : "";
}

/** Runs a clean-up whose own failure must not hide the error that led to it. */
export function quietly(action: () => void): void {
  try {
    action();
  } catch {
    // the first error is the one to report
  }
}
