/** Scopes: everything made inside one is freed when it ends, except what it returns. A step of training is one scope. */

import type { Tensor } from "./tensor.js";

const stack: Set<Tensor>[] = [];
const home = new WeakMap<Tensor, Set<Tensor>>();

/** @internal Puts a new tensor in the care of the innermost scope; false when there is none. */
export function track(tensor: Tensor): boolean {
  const scope = stack.at(-1);
  if (!scope) return false;
  scope.add(tensor);
  home.set(tensor, scope);
  return true;
}

/** @internal Takes a tensor out of its scope; false when it was in none. */
export function untrack(tensor: Tensor): boolean {
  const scope = home.get(tensor);
  if (!scope) return false;
  home.delete(tensor);
  return scope.delete(tensor);
}

/**
 * Runs `body`; tensors made in it are freed when it returns or throws, except those in its result (a tensor, or arrays and plain objects of
 * tensors), which pass to the enclosing scope. `body` must not be async: a scope is a stretch of the program, not of time.
 */
export function scope<T>(body: () => T): T {
  const own = new Set<Tensor>();
  stack.push(own);
  let result: T;
  try {
    result = body();
    for (const tensor of tensorsIn(result)) {
      if (!own.delete(tensor)) continue;
      home.delete(tensor);
      const outer = stack.at(-2);
      if (outer) {
        outer.add(tensor);
        home.set(tensor, outer);
      } else tensor.handToCollector();
    }
  } finally {
    stack.pop();
    for (const tensor of own) {
      home.delete(tensor);
      tensor.dispose();
    }
  }
  return result;
}

/** Takes a tensor out of all scopes: it lives until `dispose` or until it is forgotten. Returns it. */
export function keep<T extends Tensor>(tensor: T): T {
  if (untrack(tensor)) tensor.handToCollector();
  return tensor;
}

function* tensorsIn(value: unknown, depth = 0): Generator<Tensor> {
  if (typeof value !== "object" || value === null || depth > 4) return;
  if ("storage" in value && "shape" in value) yield value as Tensor;
  else if (Array.isArray(value)) for (const part of value) yield* tensorsIn(part, depth + 1);
  else if (Object.getPrototypeOf(value) === Object.prototype) for (const part of Object.values(value)) yield* tensorsIn(part, depth + 1);
}
