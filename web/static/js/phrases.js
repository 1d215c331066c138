// @ts-check
// Phrases and formats, as backend/pages/formats.py and job_status.py have them. Pure functions.

import {
  DURATION_UNITS,
  FINAL_STATUSES,
  FINISH_SENTENCES,
  LIMITS,
  PHRASES,
  PROBLEM_SENTENCES,
  STATUS_LABELS,
} from "./contract.js";

/**
 * @typedef {keyof typeof STATUS_LABELS} Status
 * @typedef {{
 *   id: string, status: Status, text: string, attempt: number, cancel_requested: boolean,
 *   finish_reason: keyof typeof FINISH_SENTENCES | null,
 *   error: {code: string, message: string} | null,
 *   queue: {position: number | null, eta_seconds: number | null} | null,
 *   usage: {prompt_tokens: number | null, completion_tokens: number | null},
 *   timings: {queued_ms: number | null, first_token_ms: number | null,
 *             total_ms: number | null, tokens_per_second: number | null},
 * }} Job
 * @typedef {{kind: keyof typeof PROBLEM_SENTENCES, name: string, reason: string}} Problem
 * @typedef {{depth: number, workers: unknown[],
 *   waiting: {median_seconds: number | null, p90_seconds: number | null}}} QueueDepth
 */

/**
 * Fills a template: `{name}` is replaced by the value of that name.
 * @param {string} template @param {Record<string, string | number>} values
 */
export const fill = (template, values) =>
  template.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));

/** @param {string} status */
export const isFinal = (status) => FINAL_STATUSES.includes(status);

/** @param {Pick<Job, "queue">} job */
export const queueLabel = ({ queue }) =>
  queue?.position
    ? fill(PHRASES.NUMBER_IN_QUEUE, { position: queue.position })
    : PHRASES.IN_QUEUE;

/** @param {Pick<Job, "status" | "cancel_requested" | "finish_reason" | "queue">} job */
export const statusSentence = (job) => {
  if (job.status === "running") return job.cancel_requested ? PHRASES.CANCELING : PHRASES.GENERATING;
  if (job.status === "queued") return queueSentence(job);
  return job.finish_reason ? FINISH_SENTENCES[job.finish_reason] : STATUS_LABELS[job.status];
};

/** @param {Pick<Job, "queue">} job */
const queueSentence = (job) => {
  const place = job.queue?.position === 1 ? PHRASES.NEXT_IN_QUEUE : queueLabel(job);
  const eta = job.queue?.position ? job.queue.eta_seconds : null;
  if (eta === null) return place;
  return fill(PHRASES.QUEUE_ESTIMATE, { place, seconds: Math.max(1, eta).toFixed(0) });
};

/** @param {number} ended @param {number} total */
export const endedLabel = (ended, total) =>
  fill(ended === total ? PHRASES.ALL_ENDED : PHRASES.SOME_ENDED, { ended, total });

/** How long a new job may wait. @param {QueueDepth} queue */
export const queueEstimate = ({ depth, workers, waiting }) => {
  if (!depth) return workers.length ? PHRASES.NOBODY_AHEAD : "";
  const { median_seconds: low, p90_seconds: high } = waiting;
  if (low === null || high === null) return fill(PHRASES.AHEAD, { count: depth });
  const from = Math.max(1, Math.floor(low));
  const to = Math.max(1, Math.ceil(high));
  return fill(PHRASES.AHEAD_FOR, { count: depth, span: to > from ? `${from}–${to}` : from });
};

/** @param {Problem} problem */
export const problemSentence = ({ kind, name, reason }) =>
  fill(PROBLEM_SENTENCES[kind], { name, reason });

/** @param {number} count @param {number | string} length */
export const tokensLabel = (count, length) => fill(PHRASES.TOKENS, { count, length });

/** The rate of an ended job. @param {number} tokensPerSecond */
export const finalRate = (tokensPerSecond) =>
  fill(PHRASES.RATE, { rate: tokensPerSecond.toFixed(1) });

/** The rate of a running job. @param {number} tokensPerSecond */
export const currentRate = (tokensPerSecond) =>
  fill(PHRASES.RATE, { rate: tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0) });

/** @param {number} active @param {number} slots */
export const slotsLabel = (active, slots) => fill(PHRASES.SLOTS_USED, { active, slots });

/** The number of slots that are drawn. @param {number} slots */
export const numSlotMarks = (slots) => Math.min(slots, LIMITS.maxSlotMarks);

/** @param {number | null} ms */
export const milliseconds = (ms) => {
  if (ms === null) return PHRASES.UNKNOWN;
  return ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`;
};

/** @param {number | null} seconds */
export const shortDuration = (seconds) => {
  if (seconds === null) return PHRASES.UNKNOWN;
  if (seconds < 0.9995) return `${(seconds * 1000).toFixed(0)} ms`;
  return seconds < 99.95 ? `${seconds.toFixed(1)} s` : `${(seconds / 60).toFixed(0)} min`;
};

/** @param {string} moment @param {number} now in milliseconds since 1970 */
export const ago = (moment, now) => {
  const seconds = (now - Date.parse(moment)) / 1000;
  if (seconds < 2) return PHRASES.JUST_NOW;
  for (const [size, unit] of /** @type {[number, string][]} */ (DURATION_UNITS)) {
    if (seconds < size) continue;
    const count = Math.floor(seconds / size);
    return fill(count === 1 ? PHRASES.ONE_AGO : PHRASES.MANY_AGO, { count, unit });
  }
  return PHRASES.JUST_NOW;
};
