/** What every tokenizer does: text to token ids and back, and itself to a file. */

/** Turns text into token ids and back. */
export interface Tokenizer {
  /** How many ids there are: 0 to vocabSize − 1. */
  readonly vocabSize: number;
  /** The id that ends each sentence, and that is the input before its first token. */
  readonly eosId: number;
  /** The id of unknown words; undefined where every text can be encoded. */
  readonly unkId: number | undefined;
  /** The ids of a sentence, without the end-of-sentence id. */
  encode(text: string): number[];
  /** The text of ids; end-of-sentence ids leave nothing. */
  decode(ids: readonly number[]): string;
  /** The id of a token that is put between others and never comes out of a text, as `<2de>`. @throws ConfigError when the vocabulary has it not */
  specialId(token: string): number;
  /** One token as it is shown to people. */
  tokenText(id: number): string;
  /** The file name and content for a checkpoint; `loadTokenizer` reads them back. */
  save(): { file: string; text: string };
}
