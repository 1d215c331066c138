// @ts-check
// How many texts the generate form asks for. Pure functions.

import { DETERMINISTIC_STRATEGIES } from "./contract.js";

/**
 * Whether all samples have the same text, as core.strategies.is_deterministic.
 * @param {string} strategy @param {number | null} temperature @param {number | null} topK
 */
export const isDeterministic = (strategy, temperature, topK) =>
  DETERMINISTIC_STRATEGIES.includes(strategy) || temperature === 0 || topK === 1;

/**
 * @param {{strategy: string, temperature: number | null, topK: number | null}[]} variants
 * @param {number} numModels
 * @param {string} samples the text of the field
 */
export const numTexts = (variants, numModels, samples) => {
  const each = Math.max(1, Math.trunc(Number(samples)) || 1);
  const perModel = variants.map(({ strategy, temperature, topK }) =>
    isDeterministic(strategy, temperature, topK) ? 1 : each,
  );
  return numModels * perModel.reduce((sum, count) => sum + count, 0);
};
