/** The HTTP interface of hub and school node, for as long as the scope is open. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { serve, type Served, type ServeOptions } from "../runtime.ts"

export class CannotListen extends Data.TaggedError("CannotListen")<{ readonly message: string }> {}

/** Bun and Node name the reason by `code`, Deno by `name`. */
const remedyOf = (cause: unknown): string => {
  const { code, name } = cause as { readonly code?: unknown; readonly name?: unknown }
  const said = `${String(code)} ${String(name)}`
  if (/EADDRINUSE|AddrInUse/.test(said)) return "another program has this port: stop it, or choose another one with --port"
  if (/EADDRNOTAVAIL|AddrNotAvailable|ENOTFOUND/.test(said)) return "this machine has no such address: mend --host"
  if (/EACCES|PermissionDenied/.test(said)) return "ports below 1024 need a right of their own: choose another one with --port"
  return "check --host and --port"
}

export const listen = (options: ServeOptions): Effect.Effect<Served, CannotListen, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.tryPromise({
      try: () => serve(options),
      catch: (cause) => {
        const reason = (cause instanceof Error ? cause.message : String(cause)).replace(/[.?!]+$/, "")
        return new CannotListen({ message: `cannot listen on ${options.hostname} port ${options.port}: ${reason}. ${remedyOf(cause)}` })
      },
    }),
    (server) => Effect.promise(() => server.stop()),
  )
