/**
 * The gate: format and lint (Biome), types under Bun (tsc) and under Deno, and who may import whom. Every part runs even
 * when an earlier one failed, so one run shows everything. `--write` formats first.
 */
import { spawnSync } from "node:child_process"
import process from "node:process"

export const DENO_VERSION = "2.9.6"

const biome = (command: string, ...more: ReadonlyArray<string>): ReadonlyArray<string> => [
  "bunx",
  "biome",
  command,
  "--config-path=scripts/lint.json",
  ...more,
  ...["src", "device", "test", "scripts", "schoolbus.config.ts"],
]

// Deno from npm stands in where none is installed.
const deno = spawnSync("deno", ["--version"]).status === 0 ? ["deno"] : ["bunx", `deno@${DENO_VERSION}`]

const parts: ReadonlyArray<readonly [name: string, command: ReadonlyArray<string>]> = [
  ["format and lint", biome("check", "--error-on-warnings")],
  ["types under Bun", ["bunx", "tsc", "-p", "."]],
  ["types under Deno", [...deno, "check", "src/main.ts", "device/simulator.ts", "scripts/demo.ts"]],
  ["import rules", ["bun", "--bun", "vitest", "run", "--config", "test/vitest.config.ts", "test/layers.test.ts"]],
]

const run = (command: ReadonlyArray<string>): boolean => spawnSync(command[0] ?? "", command.slice(1), { stdio: "inherit" }).status === 0

if (process.argv.includes("--write")) run(biome("check", "--write"))
const results = parts.map(([name, command]) => ({ name, passed: run(command) }))
for (const { name, passed } of results) console.log(`${passed ? "passed" : "FAILED"}  ${name}`)
process.exit(results.every(({ passed }) => passed) ? 0 : 1)
