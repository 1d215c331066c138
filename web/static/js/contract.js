// @ts-check
// Generated from backend/pages/script_contract.py by scripts/write_contract.py. Do not edit.

export const FINAL_STATUSES = [
  "succeeded",
  "failed",
  "canceled"
];

export const STATUS_LABELS = {
  "queued": "Queued",
  "running": "Running",
  "succeeded": "Finished",
  "failed": "Failed",
  "canceled": "Canceled"
};

export const FINISH_SENTENCES = {
  "stop": "The text is complete",
  "length": "The requested length was reached",
  "canceled": "Canceled; the text generated so far was kept",
  "deadline": "The deadline passed",
  "error": "The job failed with an error"
};

export const DETERMINISTIC_STRATEGIES = [
  "beam",
  "greedy"
];

export const DURATION_UNITS = [
  [
    86400,
    "day"
  ],
  [
    3600,
    "hour"
  ],
  [
    60,
    "minute"
  ],
  [
    1,
    "second"
  ]
];

export const LIMITS = {
  "maxCompared": 12,
  "maxMarkedCharacters": 24,
  "maxSlotMarks": 64,
  "slotWidth": 14,
  "minRateSeconds": 0.2
};

export const PROBLEM_SENTENCES = {
  "model": "The model {name} is left out: {reason}",
  "models_file": "{reason}",
  "worker": "The process {name} {reason}",
  "disk": "{reason}"
};

export const PHRASES = {
  "NEXT_IN_QUEUE": "Next in the queue",
  "NUMBER_IN_QUEUE": "Number {position} in the queue",
  "IN_QUEUE": "In the queue",
  "QUEUE_ESTIMATE": "{place}; about {seconds} s, estimated from recent jobs of this model",
  "GENERATING": "Generating the text",
  "CANCELING": "Canceling",
  "DELETED": "This job was deleted",
  "DELETED_LABEL": "Deleted",
  "TOKENS": "{count}/{length} tokens",
  "RATE": "{rate} tokens/s",
  "SEED": "seed {seed}",
  "ALL_ENDED": "All {total} jobs have ended",
  "SOME_ENDED": "{ended} of {total} jobs have ended",
  "DIFFERS": "differs from {title} {place}",
  "ENDS_BEFORE": "ends {place}, where {title} continues",
  "SAME_TEXT": "the same text as {title}",
  "FROM_FIRST_WORD": "from the first word",
  "AFTER_ONE_CHARACTER": "after 1 character",
  "AFTER_CHARACTERS": "after {count} characters",
  "NOBODY_AHEAD": "No jobs are waiting",
  "AHEAD": "{count} ahead",
  "AHEAD_FOR": "{count} ahead, about {span} s",
  "SLOTS_USED": "{active} of {slots} slots used",
  "JUST_NOW": "just now",
  "ONE_AGO": "1 {unit} ago",
  "MANY_AGO": "{count} {unit}s ago",
  "UNKNOWN": "–"
};
