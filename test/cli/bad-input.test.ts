/**
 * What the command line says when it is asked for what cannot be: each case has its exit code and its line, which names the value, what was expected, and
 * how to mend it. The cases that look wrong and have to work are at the end.
 */

import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { flags, inPairs, main, run, steps, writeTexts } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-bad-input-"));
afterAll(() => rmSync(root, { recursive: true }));

/** A run that works, as flags; cases change one thing. */
const good = {
  train: "train.txt",
  tokenizer: "words",
  model: "MoE-8",
  hidden_size: 16,
  batch_size: 4,
  time_steps: 6,
  max_steps: 4,
  output_dir: "out",
};
const train = (changes: Readonly<Record<string, string | number | boolean>>): string[] => [
  "train",
  ...flags({ ...good, ...changes }),
];

const files: Record<string, string | Buffer> = {
  "empty.txt": "",
  "blank.txt": " \n\t\n \r\n",
  "binary.txt": Buffer.from([104, 105, 10, 0, 1, 2, 10]),
  "latin1.txt": Buffer.from("one\ntwo\ncaf\xe9\n", "latin1"),
  "cut.txt.gz": gzipSync(Buffer.from("a b c\n".repeat(1000))).subarray(0, 30),
  "plain.txt.gz": "not packed\n",
  "twice.txt": "w0\nw1\nw0\n",
  "two-words.txt": "w0\nw1 w2\n",
  "not.json": "{ train: 1",
  "array.json": "[1, 2]",
  "unknown.json": '{ "train": "train.txt", "hiden_size": 8 }',
  "types.json": '{ "train": 5, "hidden_size": "8", "sigmoid": "no", "valid": null }',
  file: "a file",
};

beforeAll(async () => {
  writeTexts(root);
  for (const [name, content] of Object.entries(files)) writeFileSync(join(root, name), content);
  writeFileSync(join(root, "long.txt"), "");
  truncateSync(join(root, "long.txt"), 3 * 2 ** 30); // sparse: takes no room
  mkdirSync(join(root, "folder"));
  writeFileSync(join(root, "other.txt"), `${readFileSync(join(root, "train.txt"), "utf8")}w0 w1\n`);
  const outcome = await run(train({ output_dir: "run", dropout: 0.1 }), { cwd: root });
  expect(outcome.code, outcome.stderr).toBe(0);
}, 60_000);

interface Case {
  args: string[];
  env?: NodeJS.ProcessEnv;
  /** All it says, less its notes on the machine. */
  says: string | RegExp;
}

const cases: Record<string, Case> = {
  "an unknown command": {
    args: ["trian"],
    says: "error: unknown command 'trian'\n(Did you mean train?)\n(add --help for the options)",
  },
  "an unknown flag": {
    args: ["train", "--hiden-size", "3"],
    says: "error: unknown option '--hiden-size'\n(Did you mean --hidden-size?)\n(add --help for the options)",
  },
  "a flag without its value": {
    args: ["train", "--train"],
    says: "error: option '--train <file>' argument missing\n(add --help for the options)",
  },
  "an argument too many": {
    args: [...train({}), "more"],
    says: "error: too many arguments for 'train'. Expected 0 arguments but got 1.\n(add --help for the options)",
  },
  "no training text": { args: ["train"], says: "train: expected train (--train), got nothing. Name a text file, plain or .gz." },
  "a number that is text": {
    args: train({ hidden_size: "abc" }),
    says: '--hidden-size: expected an integer from 1 to 65536, got "abc".',
  },
  "a number that is empty": {
    args: train({ hidden_size: "" }),
    says: '--hidden-size: expected an integer from 1 to 65536, got "".',
  },
  "a negative number": { args: train({ batch_size: -3 }), says: "--batch-size: expected an integer from 1 to 65536, got -3." },
  "a fraction": { args: train({ time_steps: 2.5 }), says: "--time-steps: expected an integer from 1 to 65536, got 2.5." },
  "a huge number": {
    args: train({ hidden_size: "1e18" }),
    says: "--hidden-size: expected an integer from 1 to 65536, got 1000000000000000000.",
  },
  "an infinite number": {
    args: train({ learning_rate: "1e400" }),
    says: '--learning-rate: expected a number above 0, got "1e400".',
  },
  NaN: { args: train({ learning_rate: "NaN" }), says: '--learning-rate: expected a number above 0, got "NaN".' },
  "a learning rate of zero": { args: train({ learning_rate: 0 }), says: "--learning-rate: expected a number above 0, got 0." },
  "a dropout rate of one": { args: train({ dropout: 1 }), says: "--dropout: expected a number from 0 to 0.99, got 1." },
  "no steps": { args: train({ max_steps: 0 }), says: "--max-steps: expected an integer from 1 to 2147483647, got 0." },
  "a choice there is not": {
    args: train({ text_mode: "lines" }),
    says: '--text-mode: expected one of sentences, continuous, got "lines".',
  },
  "several wrong values at once": {
    args: train({ beta1: 1, optimizer: "adams" }),
    says: '--optimizer: expected one of adam, sgd, got "adams". Did you mean adam?\n--beta1: expected a number from 0 to 0.999999, got 1.',
  },
  "an unknown model": {
    args: train({ model: "MoE32" }),
    says: 'model (--model): expected one of MoE-1-Wide, MoE-1-Deep, 4xLSTM, LSTM, MoE-4, MoE-32, MoE-256, MoE-256-h, MoE-1024-h, MoE-4096-h, LSTM-512-512, LSTM-1024-512, LSTM-2048-512, 2xLSTM-8192-1024, MoE-34M, MoE-143M, MoE-16384-h, MoE-65536-h, MoE-131072-h (or MoE-<experts>, MoE-<experts>-h, LSTM-<units>-<width>), got "MoE32". Did you mean MoE-32?',
  },
  "fewer experts than a token uses": {
    args: train({ model: "MoE-3", top_k: 4 }),
    says: 'model (--model): expected at least the 4 experts that a token uses (--top-k), got "MoE-3". Take more experts, or lower --top-k.',
  },
  "more experts a token than there are": {
    args: train({ model: "MoE-8", top_k: 9 }),
    says: 'model (--model): expected at least the 9 experts that a token uses (--top-k), got "MoE-8". Take more experts, or lower --top-k.',
  },
  "a model that no memory holds": {
    args: train({ hidden_size: 60_000 }),
    says: 'model MoE-8: expected parameters, gradients and optimiser state within 4.0 GiB, got "2575.0 GiB". Lower --hidden-size, --vocab-size or the number of experts, or take --factored-experts.',
  },
  "more experts than can be counted": {
    args: train({ model: "MoE-99999999999" }),
    says: 'model MoE-99999999999: expected parameters, gradients and optimiser state within 4.0 GiB, got "1574307.7 GiB". Lower --hidden-size, --vocab-size or the number of experts, or take --factored-experts.',
  },
  "a batch of billions": {
    args: train({ batch_size: 60_000, time_steps: 60_000 }),
    says: "batch_size × time_steps (--batch-size, --time-steps): expected at most 4194304 tokens in a batch, got 3600000000. Lower one of them.",
  },
  "a wrong value in the environment": {
    args: train({}),
    env: { SPARSEGATE_TRAIN_DROPOUT: "much" },
    says: 'SPARSEGATE_TRAIN_DROPOUT: expected a number from 0 to 0.99, got "much".',
  },
  "an unknown name in the environment": {
    args: train({}),
    env: { SPARSEGATE_TRAIN_HIDEN_SIZE: "8" },
    says: 'environment: expected SPARSEGATE_TRAIN_<OPTION of train>, got "SPARSEGATE_TRAIN_HIDEN_SIZE". Did you mean SPARSEGATE_TRAIN_HIDDEN_SIZE?',
  },
  "no number of threads": {
    args: train({}),
    env: { SPARSEGATE_THREADS: "many" },
    says: 'SPARSEGATE_THREADS: expected a positive integer, got "many".',
  },
  "a configuration that is missing": {
    args: ["train", "--config", "none.json"],
    says: '--config: expected to read none.json, got "ENOENT: no such file or folder". Is the path spelled right?',
  },
  "a configuration that is a folder": {
    args: ["train", "--config", "folder"],
    says: '--config: expected to read folder, got "EISDIR: there is a folder where a file should be". Choose another path, or move that folder away.',
  },
  "a configuration that is no JSON": {
    args: ["train", "--config", "not.json"],
    // What JSON.parse says differs between versions of Node.
    says: /^--config not\.json: expected JSON, got "Expected property name .+"\. Like { "train": "text\.txt", "hidden_size": 256 }\.$/,
  },
  "a configuration that is an array": {
    args: ["train", "--config", "array.json"],
    says: '--config array.json: expected a JSON object, got [1, 2]. Like { "train": "text.txt", "hidden_size": 256 }.',
  },
  "a configuration with an unknown key": {
    args: ["train", "--config", "unknown.json"],
    says: 'unknown.json: expected the name of an option of train, got "hiden_size". Did you mean hidden_size?',
  },
  "a configuration with wrong types": {
    args: ["train", "--config", "types.json"],
    says: 'types.json: expected train (--train) to be text that is not empty, got 5.\ntypes.json: expected valid (--valid) to be text that is not empty, got null.\ntypes.json: expected hidden_size (--hidden-size) to be an integer from 1 to 65536, got "8".\ntypes.json: expected sigmoid (--sigmoid) to be true or false, got "no".',
  },
  "a text that is missing": {
    args: train({ train: "none.txt" }),
    says: 'none.txt: expected a text file, got "no such file". Check the path.',
  },
  "a text that is a folder": {
    args: train({ train: "folder" }),
    says: 'folder: expected a text file, got "a folder". Name a file inside it.',
  },
  "a text that is empty": {
    args: train({ train: "empty.txt" }),
    says: 'empty.txt: expected a text file with at least one line, got "an empty file".',
  },
  "a text of white space": {
    args: train({ train: "blank.txt" }),
    says: 'blank.txt: expected a text file with at least one word, got "only white space".',
  },
  "a binary file": {
    args: train({ train: "binary.txt" }),
    says: 'binary.txt:2: expected UTF-8 text, got "a zero byte". This is a binary file, or text in UTF-16; save it as UTF-8.',
  },
  "a text that is not UTF-8": {
    args: train({ train: "latin1.txt" }),
    says: 'latin1.txt:3: expected UTF-8 text, got "bytes that are not UTF-8". Save the file as UTF-8.',
  },
  "a text too long to read": {
    args: train({ train: "long.txt" }),
    says: 'long.txt: expected a text file of less than 2 GiB, got "a longer one". Train on a part of it.',
  },
  "a gzip file cut short": {
    args: train({ train: "cut.txt.gz" }),
    says: 'cut.txt.gz: expected a gzipped text file, got "unexpected end of file". The file is damaged or is not gzip.',
  },
  "a .gz that is not gzip": {
    args: train({ train: "plain.txt.gz" }),
    says: 'plain.txt.gz: expected a gzipped text file, got "incorrect header check". The file is damaged or is not gzip.',
  },
  "a validation text of white space": {
    args: train({ valid: "blank.txt" }),
    says: 'blank.txt: expected a text file with at least one word, got "only white space".',
  },
  "a vocabulary with a word twice": {
    args: train({ vocab: "twice.txt" }),
    says: 'twice.txt:3: expected a word not seen before, got "w0". It is on line 1 too; remove one.',
  },
  "a vocabulary with two words on a line": {
    args: train({ vocab: "two-words.txt" }),
    says: 'two-words.txt:2: expected one word a line, got "w1 w2".',
  },
  "a vocabulary that is empty": {
    args: train({ vocab: "empty.txt" }),
    says: 'empty.txt: expected a text file with at least one line, got "an empty file".',
  },
  "a vocabulary of white space": {
    args: train({ vocab: "blank.txt" }),
    says: 'blank.txt: expected a text file with at least one word, got "only white space".',
  },
  "an end-of-sentence word of two words": {
    args: train({ eos: "a b" }),
    says: 'eos (--eos): expected one word other than <unk>, got "a b".',
  },
  "too small a subword vocabulary": {
    args: train({ tokenizer: "bpe", vocab_size: 100 }),
    says: "--vocab-size: expected at least 257 (the 256 bytes and </s>) for --tokenizer bpe, got 100. Take more, or --tokenizer words.",
  },
  "too small a word vocabulary": {
    args: train({ vocab_size: 2 }),
    says: "--vocab-size: expected an integer from 3 to 16777215, got 2.",
  },
  "more sampled classes than words": {
    args: train({ sampled_softmax: 1000 }),
    says: "sampled_softmax (--sampled-softmax): expected at most the 62 entries of the vocabulary, got 1000. Lower it; 0 takes the exact softmax.",
  },
  "batches longer than the text": {
    args: train({ text_mode: "continuous", batch_size: 1000, time_steps: 100 }),
    says: "continuous text: expected at least 100000 tokens (batch size × time steps), got 2254. Lower the batch size (--batch-size) or the time steps (--time-steps), or take more text.",
  },
  "an output folder that is a file": {
    args: train({ output_dir: "file" }),
    says: '--output-dir: expected to write file, got "EEXIST: there is a file where a folder should be". Choose another path, or move that file away.',
  },
  "an output folder with a run": {
    args: train({ output_dir: "run" }),
    says: '--output-dir: expected a folder without checkpoints, as for a new run, got "run with checkpoint-4". Add --resume to go on from it, --overwrite to discard it, or give another --output-dir.',
  },
  "resuming nothing": {
    args: [...train({}), "--resume"],
    says: '--resume: expected a checkpoint in out, got "none". Killed before the first one was written, a run begins anew without --resume.',
  },
  "resuming a folder that is not there": {
    args: ["train", "--resume", "none"],
    says: '--resume: expected a checkpoint in none, got "none". Killed before the first one was written, a run begins anew without --resume.',
  },
  "resuming a checkpoint that is not there": {
    args: ["train", "--resume", "run/checkpoint-3"],
    says: '--resume: expected a folder run/checkpoint-3, got "none". Those there are: checkpoint-4.',
  },
  "resuming as another model": {
    args: ["train", "--resume", "run", "--model", "MoE-16"],
    says: '--resume: expected model (--model) "MoE-8" as in run/checkpoint-4, got "MoE-16". Leave it out, or start a new run for another model.',
  },
  "resuming with another seed": {
    args: ["train", "--resume", "run", "--seed", "1"],
    says: "--resume: expected seed (--seed) 0 as in run/checkpoint-4, got 1. Leave it out, or start a new run for another model.",
  },
  "resuming without a connection it had": {
    args: ["train", "--resume", "run", "--no-residual"],
    says: "--resume: expected residual (--residual) true as in run/checkpoint-4, got false. Leave it out, or start a new run for another model.",
  },
  "resuming on another text": {
    args: ["train", "--resume", "run", "--train", "other.txt", "--max-steps", "6"],
    says: '--resume: expected the text that run/checkpoint-4 was trained on, got "other.txt". Its tokens differ: name the first run\'s --train, or start a new run.',
  },
  "evaluating no run": {
    args: ["eval", "none"],
    says: 'eval: expected a checkpoint in none, got "none". Name a run\'s --output-dir, or a folder checkpoint-<step> in it.',
  },
  "evaluating without a name": { args: ["eval"], says: "error: missing required argument 'run'\n(add --help for the options)" },
  "evaluating without a text": {
    args: ["eval", "run"],
    says: 'eval: expected --data, a text file, got "none". run was trained without --test and --valid.',
  },
  "evaluating a text that is missing": {
    args: ["eval", "run", "--data", "none.txt"],
    says: 'none.txt: expected a text file, got "no such file". Check the path.',
  },
  "generating from no run": {
    args: ["generate", "none"],
    says: 'generate: expected a checkpoint in none, got "none". Name a run\'s --output-dir, or a folder checkpoint-<step> in it.',
  },
  "generating with top-p 2": {
    args: ["generate", "run", "--top-p", "2"],
    says: "generate: expected topP (--top-p) to be a finite number from 0 to 1, got 2.",
  },
  "generating at a negative temperature": {
    args: ["generate", "run", "--temperature", "-1"],
    says: "generate: expected temperature (--temperature) to be a finite number of at least 0, got -1.",
  },
  "generating no token": {
    args: ["generate", "run", "--max-tokens", "0"],
    says: "generate: expected maxTokens (--max-tokens) to be an integer of at least 1, got 0.",
  },
  "generating half a token": {
    args: ["generate", "run", "--max-tokens", "0.5"],
    says: "error: option '--max-tokens <n>' argument '0.5' is invalid. Expected a whole number.\n(add --help for the options)",
  },
  "inspecting no run": {
    args: ["inspect", "none"],
    says: 'inspect: expected a checkpoint in none, got "none". Name a run\'s --output-dir, or a folder checkpoint-<step> in it.',
  },
  "inspecting a folder without a checkpoint": {
    args: ["inspect", "folder"],
    says: 'inspect: expected a checkpoint in folder, got "none". Name a run\'s --output-dir, or a folder checkpoint-<step> in it.',
  },
  "inspecting a file": {
    args: ["inspect", "file"],
    says: 'inspect: expected a folder file, got "a file". Name a run\'s --output-dir.',
  },
};

/** What the program says of the machine it runs on, before it says anything else. */
const notes = /^No (relaxed SIMD|CBLAS).*\n/gm;

describe("the command line", () => {
  test(
    `says of ${Object.keys(cases).length} bad inputs what is wrong, what was expected and how to mend it, and ends with 1`,
    { timeout: 120_000 },
    async () => {
      const said: Record<string, string> = {};
      const ended: Record<string, number | null> = {};
      await inPairs(
        Object.entries(cases).map(([name, { args, env = {} }]) => async () => {
          const { code, stderr, stdout } = await run(args, { cwd: root, env });
          said[name] = stderr.replaceAll(notes, "").trim();
          ended[name] = code;
          expect(stdout, name).toBe("");
        }),
      );
      for (const [name, { says }] of Object.entries(cases)) {
        if (typeof says === "string") expect(said[name], name).toBe(says);
        else expect(said[name], name).toMatch(says);
        expect(said[name], name).not.toMatch(/undefined|\n\s+at |\[object/);
        expect(ended[name], name).toBe(1);
      }
      // Whatever was refused left the run that was there as it was, and began no other.
      expect(steps(join(root, "run"))).toEqual([4]);
      expect(steps(join(root, "out"))).toEqual([]);
    },
  );

  test(
    "shows its usage when asked for nothing, with an error, and when asked for help, without one",
    { timeout: 30_000 },
    async () => {
      const [nothing, help] = await inPairs([() => run([]), () => run(["--help"])]);
      expect([nothing!.code, help!.code]).toEqual([1, 0]);
      expect(nothing!.stderr).toMatch(/^Usage: sparsegate/);
      expect(help!.stdout).toContain("Exit codes: 0 done; 1 something to be mended");
      for (const command of ["demo", "train", "eval", "generate", "inspect", "doctor"])
        expect(help!.stdout).toContain(`  ${command} `);
    },
  );

  test("ends quietly when whoever reads its output goes away", { timeout: 30_000 }, async () => {
    // The reader closes the pipe long before anything is written.
    const command = ["sh", "-c", `"$0" "$1" inspect run | sh -c 'exec <&-; sleep 1'`, process.execPath, main];
    const { code, stderr } = await run([], { cwd: root, command });
    expect([code, stderr.replaceAll(notes, "")]).toEqual([0, ""]);
  });
});

describe("what looks wrong and has to work:", () => {
  const odd: Record<string, { args: string[]; also?: string[] }> = {
    "a batch of one token": { args: train({ batch_size: 1, time_steps: 1, output_dir: "w1", valid: "valid.txt" }) },
    "a batch of one token of continuous text": {
      args: train({ batch_size: 1, time_steps: 1, text_mode: "continuous", output_dir: "w2", valid: "valid.txt" }),
    },
    "one step": { args: train({ max_steps: 1, output_dir: "w3" }) },
    "words that are names in JavaScript": {
      args: train({ train: "names.txt", vocab: "names-vocabulary.txt", valid: "names.txt", output_dir: "w4" }),
      also: ["generate", "w4", "--prompt", "constructor __proto__", "--temperature", "0"],
    },
    "words that are names in JavaScript, counted": {
      args: train({ train: "names.txt", valid: "names.txt", output_dir: "w5" }),
      also: ["eval", "w5", "--data", "names.txt"],
    },
    "a vocabulary without <unk> and </s>, and text with neither": {
      args: train({ vocab: "few.txt", valid: "valid.txt", output_dir: "w6" }),
    },
    "line ends of Windows, a byte order mark, no last line end": { args: train({ train: "windows.txt", output_dir: "w7" }) },
    "a packed text": { args: train({ train: "packed.txt.gz", output_dir: "w8" }) },
    "as many experts a token as there are": { args: train({ model: "MoE-4", top_k: 4, output_dir: "w9" }) },
    "a single expert": { args: train({ model: "MoE-1", top_k: 1, output_dir: "w10" }) },
    "as many sampled classes as words": { args: train({ sampled_softmax: 62, output_dir: "w11" }) },
    "batches as long as the text": {
      args: train({ train: "windows.txt", text_mode: "continuous", batch_size: 4, time_steps: 3, output_dir: "w12" }),
    },
    "an evaluation of unknown words": { args: ["eval", "run", "--data", "names.txt"] },
    "the most likely token alone": { args: ["generate", "run", "--top-p", "0", "--max-tokens", "3"] },
    "a prompt of unknown words": { args: ["generate", "run", "--prompt", "zebra w1", "--max-tokens", "3"] },
    "nothing more to do": { args: ["train", "--resume", "run"] },
  };

  test(Object.keys(odd).join("; "), { timeout: 60_000 }, async () => {
    writeFileSync(join(root, "names.txt"), "constructor __proto__ toString\nhasOwnProperty valueOf constructor\n".repeat(10));
    writeFileSync(join(root, "names-vocabulary.txt"), "constructor\n__proto__\ntoString\nhasOwnProperty\nvalueOf\n");
    writeFileSync(join(root, "few.txt"), "w0\nw1\n");
    writeFileSync(join(root, "windows.txt"), "\ufeffone two three\r\nfour five six\r\nseven eight nine");
    writeFileSync(join(root, "packed.txt.gz"), gzipSync(readFileSync(join(root, "train.txt"))));
    await inPairs(
      Object.entries(odd).map(([name, { args, also }]) => async () => {
        for (const command of also ? [args, also] : [args]) {
          const { code, stdout, stderr } = await run(command, { cwd: root });
          expect(code, `${name}: ${stderr}`).toBe(0);
          expect(stdout, name).not.toMatch(/undefined|NaN/);
        }
      }),
    );
    expect(readFileSync(join(root, "w6/checkpoint-4/vocab.txt"), "utf8")).toBe("w0\nw1\n<unk>\n</s>\n");
    expect(readFileSync(join(root, "w4/checkpoint-4/vocab.txt"), "utf8")).toContain("constructor\n__proto__\ntoString\n");
    expect(readFileSync(join(root, "w7/checkpoint-4/vocab.txt"), "utf8").split("\n")).toHaveLength(9 + 2 + 1);
  });
});
