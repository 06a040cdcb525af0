#!/bin/sh
# Runs a script of this project with Bun, also on a machine that has only node and npm: Bun comes from npm for this one
# run, packages are installed exactly as bun.lock states. Usage:
#   sh scripts/run.sh [--postgres | --any-postgres] [--deno] SCRIPT.ts [ARGUMENT …]
# --postgres: sees to a Postgres server with wal2json first; --any-postgres: to one with or without. --deno: the script runs on Deno.
set -e
bun_version=1.4.4
deno_version=2.9.6
cd "$(dirname "$0")/.."

older() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" != "$2" ]; }

if ! found=$(bun --version 2> /dev/null) || older "$found" "$bun_version"; then
  if [ -n "$SCHOOLBUS_BUN_FROM_NPM" ]; then
    echo "bun from npm does not start: is 'ignore-scripts' set in an .npmrc? Install Bun $bun_version from https://bun.sh, then try again" >&2
    exit 1
  fi
  export SCHOOLBUS_BUN_FROM_NPM=1
  echo "fetching bun $bun_version from npm for this run (to keep it: npm install -g bun@$bun_version)" >&2
  exec npx --yes --package "bun@$bun_version" sh scripts/run.sh "$@"
fi
if [ ! -d node_modules ] || [ bun.lock -nt node_modules/.schoolbus ]; then
  echo "installing packages as bun.lock states" >&2
  bun install --frozen-lockfile >&2
  touch node_modules/.schoolbus
fi
if [ "$1" = --postgres ]; then
  shift
  bun scripts/setup.ts --quiet
fi
if [ "$1" = --any-postgres ]; then
  shift
  bun scripts/setup.ts --quiet --any
fi
if [ "$1" = --deno ]; then
  shift
  if command -v deno > /dev/null; then exec deno run -A "$@"; else exec bunx "deno@$deno_version" run -A "$@"; fi
fi
exec bun "$@"
