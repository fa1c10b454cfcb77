/** The one error type of sparsegate: what was expected, what came, and how to mend it. */

/**
 * An error a user can act on. The message reads `where: expected WHAT, got ACTUAL. Hint.`
 * The command line prints the message alone; a stack trace is for bugs of ours.
 */
export class SparsegateError extends Error {
  override readonly name: string = "SparsegateError";
}

/** Something the engine's user did with tensors that cannot be carried out. */
export class TensorError extends SparsegateError {
  override readonly name = "TensorError";
}

/** A value of a configuration, flag or option that cannot be used. */
export class ConfigError extends SparsegateError {
  override readonly name = "ConfigError";
}

/** A file that is missing, unreadable, damaged or not what it should be. */
export class FileError extends SparsegateError {
  override readonly name = "FileError";
}

/** A loss, gradient or parameter that is NaN or infinite. */
export class NonFiniteError extends SparsegateError {
  override readonly name = "NonFiniteError";
}

/** How a value is shown in a message: short, quoted where it is text, never `[object Object]`. */
export function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.length > 80 ? `${value.slice(0, 77)}...` : value);
  if (Array.isArray(value)) return `[${value.slice(0, 8).map(show).join(", ")}${value.length > 8 ? ", ..." : ""}]`;
  if (typeof value === "object" && value !== null) return value.constructor?.name ?? "object";
  if (typeof value === "function") return value.name || "a function";
  return String(value);
}

/** Builds the uniform message `where: expected expected, got actual. hint`. */
export function expectation(where: string, expected: string, actual: unknown, hint = ""): string {
  return `${where}: expected ${expected}, got ${show(actual)}.${hint ? ` ${hint}` : ""}`;
}
