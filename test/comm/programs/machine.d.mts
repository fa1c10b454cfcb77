export function code(): string[];
