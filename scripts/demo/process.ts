/**
 * The demo's services: real processes of the runtime that runs the demo. They stand in sessions of their own, so Ctrl-C
 * reaches only the demo, which then stops them in order; a watchdog stops them when the demo could not.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process"
import { closeSync, openSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import process from "node:process"

const root = join(import.meta.dirname, "../..")
const isDeno = "Deno" in globalThis
const STOP_TIMEOUT_MS = 20_000

/** The settings of whoever runs the demo say nothing about the demo's nodes. */
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("SCHOOLBUS_")))
const argv = (script: string, args: ReadonlyArray<string>): ReadonlyArray<string> => [...(isDeno ? ["run", "-A"] : []), join(root, script), ...args]

export interface Service {
  readonly name: string
  readonly start: () => void
  readonly write: (line: string) => void
  /** `kill -9`; returns when the process is gone. */
  readonly kill: () => Promise<void>
  /** SIGTERM; the exit code. */
  readonly stop: () => Promise<number | null>
  readonly isRunning: () => boolean
  readonly log: (lines?: number) => string
}

const WATCHDOG = `
trap '' INT TERM HUP
cat > /dev/null
for file in "$1"/*.pid; do kill -9 "$(cat "$file")" 2> /dev/null; done
rm -rf "$1"
`

/** Ends what stands in `DIR/*.pid` and removes the folder as soon as this process is gone. */
export const watch = (dir: string): ChildProcess => {
  const watchdog = spawn("/bin/sh", ["-c", WATCHDOG, "schoolbus-demo-watchdog", dir], { detached: true, stdio: ["pipe", "ignore", "ignore"] })
  watchdog.unref()
  return watchdog
}

export const service = (dir: string, name: string, script: string, args: ReadonlyArray<string>): Service => {
  const logFile = join(dir, `${name}.log`)
  let child: ChildProcess | undefined
  const gone = (): boolean => child === undefined || child.exitCode !== null || child.signalCode !== null
  const ended = (): Promise<number | null> =>
    new Promise((resolve, reject) => {
      if (gone()) return resolve(child?.exitCode ?? null)
      const timer = setTimeout(() => reject(new Error(`${name} did not end within ${STOP_TIMEOUT_MS / 1000} s`)), STOP_TIMEOUT_MS)
      child?.once("exit", (code) => {
        clearTimeout(timer)
        resolve(code)
      })
    })
  return {
    name,
    start: () => {
      const log = openSync(logFile, "a")
      const started = spawn(process.execPath, argv(script, args), { cwd: dir, env, detached: true, stdio: ["pipe", log, log] })
      closeSync(log)
      started.stdin?.on("error", () => undefined)
      writeFileSync(join(dir, `${name}.pid`), String(started.pid))
      child = started
    },
    write: (line) => void child?.stdin?.write(`${line}\n`),
    kill: async () => {
      child?.kill("SIGKILL")
      await ended()
    },
    stop: async () => {
      child?.kill("SIGTERM")
      return await ended()
    },
    isRunning: () => !gone(),
    log: (lines = 15) => readFileSync(logFile, "utf8").trimEnd().split("\n").slice(-lines).join("\n"),
  }
}

export interface Answer {
  readonly code: number
  readonly out: string
  readonly err: string
}

/** One command of the program, as a person would type it. */
export const schoolbus = (...args: ReadonlyArray<string>): Promise<Answer> =>
  new Promise((resolve) => {
    execFile(process.execPath, [...argv("src/main.ts", args)], { cwd: root, env, encoding: "utf8" }, (error, out, err) =>
      resolve({ code: error === null ? 0 : typeof error.code === "number" ? error.code : 1, out, err }),
    )
  })
