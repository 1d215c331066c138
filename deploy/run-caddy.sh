#!/bin/sh
# Starts Caddy, unless the other services have the settings of one person's own machine.
set -eu

refuse() {
    echo "The profile demo was not started: $1 See deploy/demo.env and docs/deployment.md." >&2
    exit 78
}

[ -n "${TEXTMILL_DOMAIN:-}" ] || refuse "set TEXTMILL_DOMAIN in the file .env."
case "${TEXTMILL_ACCESS:-local}" in
    demo | team) ;;
    *) refuse "set TEXTMILL_ACCESS=demo; in the mode local, every visitor sees and deletes everything." ;;
esac
[ "${TEXTMILL_TRUSTED_PROXIES:-0}" != 0 ] || refuse "set TEXTMILL_TRUSTED_PROXIES=1."
[ -n "${HAS_SECRET:-}" ] || refuse "set TEXTMILL_SECRET, or visitors lose their jobs with the container."

exec caddy run --config /etc/caddy/Caddyfile --adapter caddyfile
