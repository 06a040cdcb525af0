/** Where a command writes, and how: stdout has the answer, stderr everything else. */
import type { Environment } from "./options.ts"
import type { Look } from "./text.ts"

export interface Io {
  readonly out: (text: string) => void
  readonly err: (text: string) => void
  readonly look: Look
  /** A person can be asked. */
  readonly interactive: boolean
  /** Why the answer goes nowhere any more: its reader has gone (EPIPE), the disk under it is full; null = it is taken. */
  readonly lost: () => NodeJS.ErrnoException | null
}

interface Stream {
  readonly write: (text: string) => unknown
  readonly isTTY?: boolean
  readonly on: (event: "error", listener: (cause: NodeJS.ErrnoException) => void) => unknown
}

/** Colour only on a terminal and when nothing speaks against it. */
export const lookOf = (env: Environment, isTTY: boolean): Look => {
  const forced = env["FORCE_COLOR"]
  const locale = env["LC_ALL"] || env["LC_CTYPE"] || env["LANG"] || ""
  return {
    color:
      forced !== undefined && forced !== "" && forced !== "0"
        ? true
        : isTTY && (env["NO_COLOR"] ?? "") === "" && env["TERM"] !== "dumb" && forced !== "0",
    unicode: /utf-?8/i.test(locale),
  }
}

export const ioOf = (env: Environment, stdout: Stream, stderr: Stream, stdin: { readonly isTTY?: boolean }): Io => {
  let lost: NodeJS.ErrnoException | null = null
  const lose = (cause: unknown) => {
    lost ??= cause as NodeJS.ErrnoException
  }
  stdout.on("error", lose)
  stderr.on("error", () => undefined)
  return {
    out: (text) => {
      if (lost !== null) return
      // A runtime may throw what another one tells as an event.
      try {
        stdout.write(text)
      } catch (cause) {
        lose(cause)
      }
    },
    err: (text) => void stderr.write(text),
    look: lookOf(env, stdout.isTTY === true),
    interactive: stdin.isTTY === true && stderr.isTTY === true,
    lost: () => lost,
  }
}
