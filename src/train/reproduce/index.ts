/** The tables that can be reproduced, by name. */

import { table7, table8 } from "./language-models.js";
import { table6 } from "./table-6.js";
import type { PaperTable } from "./table.js";

export const TABLES: ReadonlyMap<string, PaperTable> = new Map([table6, table7, table8].map((table) => [table.name, table]));
