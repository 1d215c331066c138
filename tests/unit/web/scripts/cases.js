// The cases that the Python tests run too.
import { readFileSync } from "node:fs";

/** @param {string} name */
export const cases = (name) =>
  JSON.parse(readFileSync(new URL(`../cases/${name}.json`, import.meta.url), "utf8"));
