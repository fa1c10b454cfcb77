// Writes docs/api/index.md: every export of the built package with its signature and its documentation comment. Run `npm run build` first.
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript-messages"; // TypeScript 5: TypeScript 7 has no JavaScript API

const root = fileURLToPath(new URL("..", import.meta.url));
const entry = `${root}dist/index.d.ts`;
if (!existsSync(entry)) {
  console.error("docs: expected dist/index.d.ts, got nothing. Run `npm run build` first.");
  process.exit(1);
}

const program = ts.createProgram([entry], {
  module: ts.ModuleKind.NodeNext,
  target: ts.ScriptTarget.ES2022,
  skipLibCheck: true,
  types: ["node"],
});
const checker = program.getTypeChecker();
const entrySymbol = checker.getSymbolAtLocation(program.getSourceFile(entry));
const printer = ts.createPrinter({ removeComments: true });

/** Room of dist/ -> one section of Markdown an export. */
const rooms = new Map();
const undocumented = [];
for (const exported of checker.getExportsOfModule(entrySymbol).sort((a, b) => (a.name < b.name ? -1 : 1))) {
  const symbol = exported.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(exported) : exported;
  const declarations = symbol.getDeclarations() ?? [];
  if (declarations.length === 0) continue;
  if (symbol.getJsDocTags(checker).some((tag) => tag.name === "internal")) continue;
  const source = declarations[0].getSourceFile();
  const path = relative(`${root}dist`, source.fileName).split(sep);
  const text = ts.displayPartsToString(symbol.getDocumentationComment(checker)).trim();
  if (text === "") undocumented.push(exported.name);
  const tags = symbol.getJsDocTags(checker).map((tag) => `- *${tag.name}* ${ts.displayPartsToString(tag.text)}`);
  const signature = declarations
    .map((node) => printer.printNode(ts.EmitHint.Unspecified, statementOf(node), node.getSourceFile()))
    .join("\n");
  const section = [
    `### ${exported.name}`,
    text,
    tags.join("\n"),
    `\`\`\`ts\n${signature.replace(/^export (declare )?/gm, "")}\n\`\`\``,
    `Defined in \`src/${path.join("/").replace(/\.d\.ts$/, ".ts")}\`.`,
  ];
  const room = path.length > 1 ? path[0] : "index";
  rooms.set(room, [...(rooms.get(room) ?? []), section.filter((part) => part !== "").join("\n\n")]);
}

/** A variable's whole statement, so that `const` is shown. */
function statementOf(node) {
  return ts.isVariableDeclaration(node) ? node.parent.parent : node;
}

const sections = [...rooms].sort(([a], [b]) => (a < b ? -1 : 1)).map(([room, parts]) => `## ${room}\n\n${parts.join("\n\n")}`);
mkdirSync(`${root}docs/api`, { recursive: true });
writeFileSync(
  `${root}docs/api/index.md`,
  `# sparsegate: API reference\n\nMade by \`npm run docs\` from the comments in the sources.\n\n${sections.join("\n\n")}\n`,
);
console.log(
  `docs/api/index.md: ${[...rooms.values()].flat().length} exports${undocumented.length > 0 ? `; without a comment: ${undocumented.join(", ")}` : ""}`,
);
