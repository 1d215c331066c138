#!/bin/sh
# One completion with curl.
set -eu
curl --fail-with-body --silent --show-error "${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}/completions" \
  --header "Authorization: Bearer ${OPENAI_API_KEY:-none}" \
  --json "{\"model\": \"${MODEL:-arxiv-abstracts}\", \"prompt\": \"Title:\", \"max_tokens\": 20, \"temperature\": 0}"
