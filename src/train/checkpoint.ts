/**
 * Checkpoints: a folder `checkpoint-STEP` in the run's folder, whole or absent whatever instant the process is killed at.
 *
 * It is written into a hidden folder beside, flushed to the disk, and renamed. `trainer_state.json` is its seal: it lists every other file with
 * length and checksum (for safetensors that of the header, which covers the tensors), and carries a checksum of itself.
 * @see design.md, Checkpoints
 */

import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, renameSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { checkInteger } from "../core/checks.js";
import { ConfigError, expectation, FileError } from "../core/errors.js";
import { fileError, fsyncFolder, makeFolder, quietly, temporaryWriter, writeFileAtomic } from "./atomic.js";
import { isOtherProcess } from "./lock.js";
import { crc32, SafetensorsFile, type StoredDtype, type StoredTensor, type TensorData, type TensorInfo, writeSafetensors } from "./safetensors.js";

/** What a checkpoint keeps. Objects are plain JSON: numbers that are not finite are refused, as JSON would lose them. */
export interface CheckpointContents {
  /** The resolved configuration, for `config.json`. */
  config: object;
  model: Iterable<StoredTensor>;
  /** Nothing is written when left out, as for a model to be shared. */
  optimizer?: Iterable<StoredTensor>;
  /** Data cursor, random state and whatever else the trainer needs to go on, for `trainer_state.json`. */
  state?: object;
  /** Further files by name, such as `tokenizer.json` or `vocab.txt`. */
  files?: ReadonlyMap<string, string>;
}

export interface SaveOptions {
  /** How many checkpoints stay; the lowest steps are deleted once the new one is in place, so the disk must hold one more. @default all */
  saveTotalLimit?: number;
  /** A safetensors file gets no longer than this, unless one tensor is. In bytes. @default 2 GiB, which every file system and tool can hold */
  shardBytes?: number;
}

/** A loaded checkpoint: the small files are in memory, tensors are read on demand. */
export interface Checkpoint {
  path: string;
  step: number;
  config: Record<string, unknown>;
  state: Record<string, unknown>;
  files: Map<string, string>;
  model: TensorFiles;
  /** Null when it was saved without. */
  optimizer: TensorFiles | null;
}

interface Seal {
  bytes: number;
  crc32: string;
}

const format = "sparsegate-checkpoint-1";
const sealStart = `{\n  "format": "${format}",\n  "crc32": "`;
const ownName = /^(config\.json|trainer_state\.json|(model|optimizer)([-.].*)?\.safetensors(\.index\.json)?)$/;
const hiddenName = /^\.(checkpoint-\d+)\.(tmp|old|del)-(\d+)$/;

/**
 * Writes `checkpoint-STEP` in the run's folder, which is created when missing. One of the same step is replaced. Blocks until
 * everything is on the disk. Left-overs of saves that were killed are cleared first.
 * @returns the folder's path
 * @throws FileError when it cannot be written; earlier checkpoints are intact then, and nothing is left of the new one
 * @throws ConfigError for a value JSON cannot hold or a file name that is taken; TensorError as from writeSafetensors
 */
export function saveCheckpoint(runDir: string, step: number, contents: CheckpointContents, options: SaveOptions = {}): string {
  const where = "saveCheckpoint";
  checkInteger(where, "step", step, { min: 0, max: Number.MAX_SAFE_INTEGER });
  const limit =
    options.saveTotalLimit === undefined ? Infinity : checkInteger(where, "saveTotalLimit", options.saveTotalLimit, { min: 1 });
  const shardBytes = checkInteger(where, "shardBytes", options.shardBytes ?? 2 ** 31, { min: 1 });
  checkJson(where, "config", contents.config);
  checkJson(where, "state", contents.state ?? {});
  const target = join(runDir, `checkpoint-${step}`);
  const temporary = join(runDir, `.checkpoint-${step}.tmp-${process.pid}`);
  try {
    makeFolder(runDir);
    clearLeftovers(runDir);
    mkdirSync(temporary);
    const seals = new Map<string, Seal>();
    const writeText = (name: string, text: string) => {
      const bytes = Buffer.from(text, "utf8");
      writeFileAtomic(join(temporary, name), bytes);
      seals.set(name, { bytes: bytes.length, crc32: hex(crc32(bytes)) });
    };
    writeText("config.json", toJson(contents.config));
    for (const [name, text] of contents.files ?? []) {
      if (ownName.test(name) || name !== basename(name) || name === "" || name.startsWith(".") || name.includes("\\")) {
        throw new ConfigError(expectation(where, "a plain file name that is not one of the checkpoint's own", name));
      }
      writeText(name, text);
    }
    writeShards(temporary, "model", contents.model, shardBytes, seals, writeText);
    if (contents.optimizer !== undefined) writeShards(temporary, "optimizer", contents.optimizer, shardBytes, seals, writeText);
    writeFileAtomic(join(temporary, "trainer_state.json"), sealed(step, contents.state ?? {}, seals));
    fsyncFolder(temporary);
    const old = join(runDir, `.checkpoint-${step}.old-${process.pid}`);
    const replaces = existsSync(target);
    if (replaces && !isFolder(target))
      throw new FileError(expectation(where, `${target} to be a folder`, "a file", "Move it away."));
    if (replaces) renameSync(target, old);
    renameSync(temporary, target);
    fsyncFolder(runDir);
    if (replaces) warnIfFails(() => rmSync(old, { recursive: true, force: true }));
  } catch (error) {
    quietly(() => rmSync(temporary, { recursive: true, force: true }));
    quietly(() => clearLeftovers(runDir)); // puts a replaced checkpoint back
    if (error instanceof FileError) throw new FileError(error.message.replaceAll(temporary, target), { cause: error });
    throw fileError(where, target, "write", error);
  }
  const others = checkpointSteps(runDir).filter((other) => other !== step);
  for (const other of others.slice(0, Math.max(0, others.length - (limit - 1)))) {
    warnIfFails(() => remove(runDir, `checkpoint-${other}`));
  }
  return target;
}

/**
 * The complete checkpoint of the highest step in the run's folder, or null. A folder that lacks a file, or holds one of the wrong
 * length, is passed over; content is checked when it is loaded.
 * @param below only steps lower than this count
 */
export function latestCheckpoint(runDir: string, below = Infinity): string | null {
  for (const step of checkpointSteps(runDir).reverse()) {
    if (step >= below) continue;
    const path = join(runDir, `checkpoint-${step}`);
    try {
      const { seals } = readSeal(path);
      for (const [name, { bytes }] of seals) checkLength(path, name, bytes);
      return path;
    } catch (error) {
      if (!(error instanceof FileError)) throw error;
    }
  }
  return null;
}

/**
 * Opens a checkpoint and checks every file but the tensors' data, which are checked as they are read.
 * @param path the folder `checkpoint-STEP`
 * @throws FileError that names the file which is missing, cut short or damaged
 */
export function loadCheckpoint(path: string): Checkpoint {
  const { step, state, seals } = readSeal(path);
  const files = new Map<string, string>();
  const tensors = { model: new Map<string, SafetensorsFile>(), optimizer: new Map<string, SafetensorsFile>() };
  for (const [name, seal] of seals) {
    checkLength(path, name, seal.bytes);
    if (name.endsWith(".safetensors")) {
      const file = new SafetensorsFile(join(path, name));
      if (file.crc32 !== seal.crc32) throw damaged(path, name, `the checksum ${seal.crc32}`, file.crc32);
      tensors[name.startsWith("optimizer") ? "optimizer" : "model"].set(name, file);
    } else {
      const bytes = readBytes(path, name);
      if (hex(crc32(bytes)) !== seal.crc32) throw damaged(path, name, `the checksum ${seal.crc32}`, hex(crc32(bytes)));
      files.set(name, bytes.toString("utf8"));
    }
  }
  const config = parseObject(path, "config.json", files.get("config.json") ?? "");
  for (const name of [...files.keys()].filter((file) => ownName.test(file))) files.delete(name);
  const optimizer = tensors.optimizer.size > 0 ? new TensorFiles(path, [...tensors.optimizer.values()]) : null;
  return { path, step, config, state, files, model: new TensorFiles(path, [...tensors.model.values()]), optimizer };
}

/** Whether a checkpoint is in a run's folder, by whatever name either is reached. */
export function isIn({ path }: Checkpoint, runDir: string): boolean {
  const real = (one: string): string => (existsSync(one) ? realpathSync(one) : resolve(one));
  return dirname(real(path)) === real(runDir);
}

/**
 * Saves a loaded checkpoint in another run's folder, for use: without optimiser and state. Every byte is checked on the way.
 * @throws FileError as from saveCheckpoint, or naming the file that is damaged
 */
export function copyCheckpoint({ step, config, model, files }: Checkpoint, runDir: string): void {
  const tensors = model.names.map((name): StoredTensor => {
    const { shape, dtype } = model.info(name);
    return { name, shape, dtype: dtype as StoredDtype, data: () => model.read(name) };
  });
  saveCheckpoint(runDir, step, { config, model: tensors, files });
}

/** The tensors of one or more safetensors files under one roof. */
export class TensorFiles {
  private readonly owners = new Map<string, SafetensorsFile>();

  constructor(
    readonly path: string,
    files: readonly SafetensorsFile[],
  ) {
    for (const file of files) {
      for (const name of file.names) {
        if (this.owners.has(name)) throw damaged(path, basename(file.path), `no second tensor ${name}`, "one");
        this.owners.set(name, file);
      }
    }
  }

  get names(): string[] {
    return [...this.owners.keys()];
  }

  has(name: string): boolean {
    return this.owners.has(name);
  }

  /** @throws FileError when there is no such tensor */
  info(name: string): TensorInfo {
    return this.owner(name).info(name);
  }

  /** Reads one tensor, see SafetensorsFile.read. @throws FileError */
  read(name: string, into?: TensorData): TensorData {
    return this.owner(name).read(name, into);
  }

  /** Reads some rows of a tensor, see SafetensorsFile.readRows. @throws FileError */
  readRows(name: string, first: number, count: number): { data: TensorData; crc32: number } {
    return this.owner(name).readRows(name, first, count);
  }

  /** Checks a tensor by its parts, see SafetensorsFile.checkParts. @throws FileError */
  checkParts(name: string, parts: readonly { crc32: number; bytes: number }[]): void {
    this.owner(name).checkParts(name, parts);
  }

  private owner(name: string): SafetensorsFile {
    const file = this.owners.get(name);
    if (file === undefined) {
      throw new FileError(
        expectation(`TensorFiles ${this.path}`, `a tensor ${name}`, "none", "Does the configuration belong to this checkpoint?"),
      );
    }
    return file;
  }
}

/** Writes one file, or several with an index in the manner of Hugging Face; tensors in order of name, so that the same model gives the same files. */
function writeShards(
  folder: string,
  stem: string,
  tensors: Iterable<StoredTensor>,
  shardBytes: number,
  seals: Map<string, Seal>,
  writeText: (name: string, text: string) => void,
): void {
  const shards: StoredTensor[][] = [[]];
  let total = 0;
  let room = shardBytes;
  for (const tensor of [...tensors].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))) {
    const bytes = 4 * tensor.shape.reduce((a, b) => a * b, 1);
    if (bytes > room && shards.at(-1)!.length > 0) {
      shards.push([]);
      room = shardBytes;
    }
    shards.at(-1)!.push(tensor);
    room -= bytes;
    total += bytes;
  }
  const number = (i: number) => String(i).padStart(5, "0");
  const owners: [string, string][] = [];
  shards.forEach((shard, i) => {
    const name = shards.length === 1 ? `${stem}.safetensors` : `${stem}-${number(i + 1)}-of-${number(shards.length)}.safetensors`;
    seals.set(name, writeSafetensors(join(folder, name), shard, { format: "pt" })); // transformers refuses files without a format
    for (const tensor of shard) owners.push([tensor.name, name]);
  });
  if (shards.length > 1) {
    writeText(
      `${stem}.safetensors.index.json`,
      toJson({ metadata: { total_size: total }, weight_map: Object.fromEntries(owners) }),
    );
  }
}

function sealed(step: number, state: object, seals: Map<string, Seal>): string {
  const text = toJson({ format, crc32: "00000000", step, state, files: Object.fromEntries(seals) });
  const own = hex(crc32(Buffer.from(text, "utf8")));
  return sealStart + own + text.slice(sealStart.length + 8);
}

function readSeal(path: string): { step: number; state: Record<string, unknown>; seals: Map<string, Seal> } {
  const name = "trainer_state.json";
  const bytes = readBytes(path, name);
  const own = bytes.toString("latin1", sealStart.length, sealStart.length + 8);
  if (bytes.toString("latin1", 0, sealStart.length) !== sealStart)
    throw damaged(path, name, `"format": "${format}" first`, "something else");
  const zeroed = Buffer.from(bytes.length < sealStart.length + 8 ? "" : bytes);
  if (zeroed.length > 0) zeroed.fill("0", sealStart.length, sealStart.length + 8);
  if (hex(crc32(zeroed)) !== own) throw damaged(path, name, `the checksum ${own}`, hex(crc32(zeroed)));
  const { step, state, files } = parseObject(path, name, bytes.toString("utf8")) as { step: number; state: {}; files: {} };
  return { step, state, seals: new Map(Object.entries(files)) };
}

/** Steps of the folders named `checkpoint-STEP`, whole or damaged, ascending; none where the run's folder does not exist. @throws FileError */
export function checkpointSteps(runDir: string): number[] {
  if (!existsSync(runDir)) return [];
  quietly(() => clearLeftovers(runDir, ["old"])); // a kill between the two renames of a replacement
  const names = readNames(runDir).filter((name) => /^checkpoint-(0|[1-9]\d*)$/.test(name) && isFolder(join(runDir, name)));
  return names.map((name) => Number(name.slice("checkpoint-".length))).sort((a, b) => a - b);
}

/** Deletes what killed saves and deletions left, half-written files of the run's folder too, and puts a checkpoint back whose replacement did not get into place. */
function clearLeftovers(runDir: string, kinds = ["tmp", "old", "del"]): void {
  for (const name of readNames(runDir)) {
    // A process that lives may be saving right now.
    const writer = temporaryWriter(name);
    if (writer !== undefined && kinds.includes("tmp") && !isOtherProcess(writer)) rmSync(join(runDir, name), { force: true });
    const [, target, kind, pid] = hiddenName.exec(name) ?? [];
    if (target === undefined || !kinds.includes(kind) || isOtherProcess(Number(pid))) continue;
    if (kind === "old" && !existsSync(join(runDir, target))) renameSync(join(runDir, name), join(runDir, target));
    else rmSync(join(runDir, name), { recursive: true, force: true });
  }
}

/** Deletes checkpoints of a run. @throws FileError */
export function deleteCheckpoints(runDir: string, steps: readonly number[]): void {
  for (const step of steps) {
    try {
      remove(runDir, `checkpoint-${step}`);
    } catch (error) {
      throw fileError("deleteCheckpoints", join(runDir, `checkpoint-${step}`), "delete", error);
    }
  }
}

/** Renames before it deletes, so that a kill half way leaves no folder that looks like a checkpoint. */
function remove(runDir: string, name: string): void {
  const doomed = join(runDir, `.${name}.del-${process.pid}`);
  renameSync(join(runDir, name), doomed);
  fsyncFolder(runDir);
  rmSync(doomed, { recursive: true, force: true });
}

/** An old checkpoint that cannot be deleted is no reason to stop the training. */
function warnIfFails(action: () => void): void {
  try {
    action();
  } catch (error) {
    process.emitWarning(
      `saveCheckpoint: an old checkpoint could not be deleted: ${error instanceof Error ? error.message : error}`,
    );
  }
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}

function readNames(runDir: string): string[] {
  try {
    return readdirSync(runDir);
  } catch (error) {
    throw fileError("checkpoint", runDir, "read", error);
  }
}

function readBytes(path: string, name: string): Buffer {
  try {
    return readFileSync(join(path, name));
  } catch (error) {
    throw fileError("loadCheckpoint", join(path, name), "read", error);
  }
}

function checkLength(path: string, name: string, bytes: number): void {
  let found = 0;
  try {
    found = statSync(join(path, name)).size;
  } catch (error) {
    throw fileError("loadCheckpoint", join(path, name), "read", error);
  }
  if (found !== bytes) throw damaged(path, name, `${bytes} bytes`, found);
}

function damaged(path: string, name: string, expected: string, actual: unknown): FileError {
  return new FileError(
    expectation(`loadCheckpoint ${join(path, name)}`, expected, actual, "The file is damaged: resume from another checkpoint."),
  );
}

function parseObject(path: string, name: string, text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch {
    // told below
  }
  throw damaged(path, name, "a JSON object", text);
}

/** Refuses what JSON.stringify would silently change: NaN, infinities, typed arrays, maps. Members that are undefined are left out. */
function checkJson(where: string, name: string, value: unknown): void {
  if (value === null || typeof value === "string" || typeof value === "boolean") return;
  if (typeof value === "number" && Number.isFinite(value)) return;
  if (Array.isArray(value)) return value.forEach((item, i) => checkJson(where, `${name}[${i}]`, item));
  const plain = typeof value === "object" && [Object.prototype, null].includes(Object.getPrototypeOf(value));
  if (!plain) throw new ConfigError(expectation(where, `${name} to be something JSON can hold`, value));
  for (const [key, item] of Object.entries(value as object)) if (item !== undefined) checkJson(where, `${name}.${key}`, item);
}

const toJson = (value: object): string => `${JSON.stringify(value, null, 2)}\n`;
const hex = (crc: number): string => crc.toString(16).padStart(8, "0");
