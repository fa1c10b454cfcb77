/** Parameters and optimiser state of a program of one's own: to a safetensors file, and back into tensors that are there. */

import { ConfigError, expectation, FileError } from "../core/errors.js";
import { sameShape, type Tensor } from "../tensor/tensor.js";
import { SafetensorsFile, writeSafetensors, type StoredDtype, type TensorData } from "./safetensors.js";

/**
 * Writes tensors by name, as `module.namedState()` and `optimizer.prepare()` give them, to one safetensors file, whole or not at all. Values that are not finite
 * are written as they are.
 * @param metadata strings that are kept beside them, such as the number of steps
 * @throws ConfigError for a tensor whose other parts are on other ranks, or metadata that are no strings; FileError when the file cannot be written
 */
export function saveTensors(path: string, tensors: ReadonlyMap<string, Tensor>, metadata: Readonly<Record<string, string>> = {}): void {
  for (const [key, value] of Object.entries<unknown>(metadata)) {
    if (typeof value !== "string") throw new ConfigError(expectation("saveTensors", `metadata ${key} to be text`, value, "Give String(value)."));
    if (key.startsWith("crc32")) throw new ConfigError(expectation("saveTensors", 'metadata whose names do not begin with "crc32", as those of checksums do', key));
  }
  const stored = [...tensors].map(([name, tensor]) => {
    checkWhole("saveTensors", name, tensor);
    return { name, shape: tensor.shape, dtype: dtypeOf(tensor), data: () => narrow(tensor.dataSync()) };
  });
  writeSafetensors(path, stored, metadata);
}

/**
 * Fills tensors from a file that `saveTensors` wrote, or another tool. Everything is read and checked before the first is changed.
 * The file may hold no others, unless `strict` is false.
 * @param tensors what to fill, by name: a module's `namedState()`, an optimiser's `prepare()`
 * @returns what was kept beside them
 * @throws FileError when the file is missing or damaged, lacks a tensor or has it in another shape or dtype, or holds one that is not asked for; ConfigError for a
 * tensor whose other parts are on other ranks
 */
export function loadTensors(path: string, tensors: ReadonlyMap<string, Tensor>, { strict = true }: { strict?: boolean } = {}): ReadonlyMap<string, string> {
  const file = new SafetensorsFile(path);
  const read = [...tensors].map(([name, tensor]): [Tensor, TensorData] => {
    checkWhole("loadTensors", name, tensor);
    void tensor.buffer; // one that has been freed is found before another is changed
    checkEntry(path, file, name, tensor.shape);
    const { dtype } = file.info(name);
    if (dtype !== dtypeOf(tensor)) throw new FileError(expectation(path, `${name} of ${dtypeOf(tensor)}`, dtype, "Numbers of other kinds have to be converted first."));
    return [tensor, file.read(name)];
  });
  const other = strict ? file.names.find((name) => !tensors.has(name)) : undefined;
  if (other !== undefined) throw new FileError(expectation(path, "no other tensors than asked for", other, "Pass strict: false to leave it."));
  for (const [tensor, data] of read) tensor.backend.write(tensor.buffer, data);
  return file.metadata;
}

function checkWhole(where: string, name: string, { shard }: Tensor): void {
  if (shard) throw new ConfigError(expectation(where, "whole tensors", name, "Its other parts are on other ranks."));
}

const dtypeOf = ({ dtype }: Tensor): StoredDtype => (dtype === "int32" ? "I32" : "F32");

/** @throws FileError at `path` where there is no tensor of that name and shape */
export function checkEntry(path: string, files: Pick<SafetensorsFile, "has" | "info">, name: string, expected: readonly number[]): void {
  const hint = "Is it of another model?";
  if (!files.has(name)) throw new FileError(expectation(path, `a tensor ${name}`, "none", hint));
  const { shape } = files.info(name);
  if (!sameShape(shape, expected)) throw new FileError(expectation(path, `${name} of shape [${expected.join(", ")}]`, shape, hint));
}

/** Elements as a file has them: of the reference backend, whose are float64, rounded. */
export function narrow(data: TensorData | Float64Array): TensorData {
  return data instanceof Float64Array ? Float32Array.from(data) : data;
}
