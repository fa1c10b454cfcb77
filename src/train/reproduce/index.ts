/** The tables that can be reproduced, by name. */

import { table6 } from "./table-6.js";
import type { PaperTable } from "./table.js";

export const TABLES: ReadonlyMap<string, PaperTable> = new Map([table6].map((table) => [table.name, table]));
