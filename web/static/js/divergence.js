// @ts-check
// Where a text diverges from another: the same rules as backend/pages/comparison.py.
//
// JavaScript counts UTF-16 units and Python counts code points. Lengths here are in code points
// wherever they are compared with a limit or shown. Pure functions.

import { LIMITS, PHRASES } from "./contract.js";
import { fill } from "./phrases.js";

/**
 * @typedef {{text: string, hasEnded: boolean}} Compared
 * @typedef {{same: string, mark: string, rest: string, note: string}} Divergence
 */

/**
 * The number of equal UTF-16 units at the start of two texts, never ending inside a character.
 * @param {string} one @param {string} other
 */
export const commonLength = (one, other) => {
  const end = Math.min(one.length, other.length);
  let index = 0;
  while (index < end && one.charCodeAt(index) === other.charCodeAt(index)) index++;
  const isInside = index > 0 && /[\ud800-\udbff]/.test(one.charAt(index - 1));
  return isInside ? index - 1 : index;
};

/**
 * The start of the word in which two texts diverge at an index. That is the index itself between
 * two words, and in scripts without spaces.
 * @param {string} text @param {string} other @param {number} index
 */
const wordStart = (text, other, index) => {
  const isBetween = [text, other].every((one) => /^[ \t\r\n]?$/.test(one.charAt(index)));
  if (isBetween) return index;
  const max = LIMITS.maxMarkedCharacters;
  const tail = [...text.slice(Math.max(0, index - 2 * max), index)].slice(-max).join("");
  const word = /[^ \t\r\n]*$/.exec(tail)?.[0] ?? "";
  return [...word].length === max ? index : index - word.length;
};

/** @param {string} before the text before the place */
const place = (before) => {
  const count = [...before].length;
  if (count === 0) return PHRASES.FROM_FIRST_WORD;
  return count === 1 ? PHRASES.AFTER_ONE_CHARACTER : fill(PHRASES.AFTER_CHARACTERS, { count });
};

/**
 * Splits a text where it diverges from a reference.
 * @param {Compared} job
 * @param {Compared | null} reference
 * @param {string} title of the reference
 * @returns {Divergence}
 */
export const divergence = (job, reference, title) => {
  const { text } = job;
  const undivided = { same: text, mark: "", rest: "", note: "" };
  if (!reference || !text) return undivided;
  const other = reference.text;
  const index = commonLength(text, other);
  const isBeforeEnd = index < Math.min(text.length, other.length);
  if (isBeforeEnd || (index < text.length && reference.hasEnded)) {
    const start = wordStart(text, other, index);
    const word = /^[ \t\r\n]*[^ \t\r\n]+/u.exec(text.slice(start))?.[0] ?? text.slice(start);
    const size = [...text.slice(start, index)].length + LIMITS.maxMarkedCharacters;
    const mark = [...word].slice(0, size).join("");
    const same = text.slice(0, start);
    const note = fill(PHRASES.DIFFERS, { title, place: place(same) });
    return { same, mark, rest: text.slice(start + mark.length), note };
  }
  if (!job.hasEnded || !reference.hasEnded) return undivided;
  if (index < other.length) {
    const note = fill(PHRASES.ENDS_BEFORE, { title, place: place(text.slice(0, index)) });
    return { ...undivided, note };
  }
  return { ...undivided, note: fill(PHRASES.SAME_TEXT, { title }) };
};
