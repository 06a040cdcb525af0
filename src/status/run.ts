/** Sync runs of a school: what moved, table by table, why, and how it ended. Those that somebody asked for are written down as they begin. */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import { Libsql, type LibsqlError } from "../libsql/client.ts"
import type { SyncDirection } from "./sync-now.ts"

/** What a person, or head office, asked for. */
export interface Asked {
  readonly by: string
  readonly direction: SyncDirection
  /** The run that tells how it went. */
  readonly run: number
}

/** The sync run under way, and the way to ask for one now. */
export class Session extends Context.Service<
  Session,
  {
    /** Adds to the run; `why` names a run that nobody asked for. */
    readonly note: (why: string, part: Partial<Moved>) => void
    readonly wake: Latch.Latch
    /** Closes the run under way and begins one of its own. */
    readonly ask: (by: string, direction: SyncDirection) => Effect.Effect<Asked | null>
    /** Who asked last and has not been served. */
    readonly asked: Effect.Effect<Asked | null>
    /** Writes the run down; nothing when nothing happened and nobody asked. */
    readonly closeRun: Effect.Effect<void>
  }
>()("schoolbus/Session") {
  static readonly layer = Layer.effect(
    Session,
    Effect.gen(function* () {
      const db = yield* Libsql
      const wake = yield* Latch.make()
      const runs = yield* Semaphore.make(1)
      let run = noRun(yield* Clock.currentTimeMillis)
      let asked: Asked | null = null
      const warn = <A>(nothing: A) =>
        Effect.catch((error: LibsqlError) => Effect.as(Effect.logWarning(`the run could not be written: ${error.message}`), nothing))
      const close = Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const { up, down, conflicts, error, startedAt, why, tables } = run
        const own = asked
        run = noRun(now)
        asked = null
        const values = [now, up, down, conflicts, JSON.stringify(tables), error]
        if (own !== null) {
          yield* db.write((tx) =>
            tx.run("UPDATE schoolbus_run SET ended_at = ?, up = ?, down = ?, conflicts = ?, tables = ?, error = ? WHERE id = ?", [
              ...values,
              own.run,
            ]),
          )
        } else if (up + down > 0 || error !== null) {
          yield* db.write((tx) =>
            tx.run("INSERT INTO schoolbus_run (ended_at, up, down, conflicts, tables, error, trigger, started_at) VALUES (?,?,?,?,?,?,?,?)", [
              ...values,
              why ?? "schedule",
              startedAt,
            ]),
          )
        }
      }).pipe(warn(undefined))
      return Session.of({
        wake,
        note: (why, part) => {
          run.why ??= why
          run.up += part.up ?? 0
          run.down += part.down ?? 0
          run.conflicts += part.conflicts ?? 0
          run.error ??= part.error ?? null
          for (const [table, { up, down }] of Object.entries(part.tables ?? {})) {
            const sum = run.tables[table] ?? { up: 0, down: 0 }
            run.tables[table] = { up: sum.up + up, down: sum.down + down }
          }
        },
        ask: (by, direction) =>
          runs.withPermit(
            Effect.gen(function* () {
              yield* close
              const [row] = yield* db
                .write((tx) =>
                  tx.all<{ id: number }>("INSERT INTO schoolbus_run (trigger, direction, started_at) VALUES (?, ?, ?) RETURNING id", [
                    by,
                    direction,
                    run.startedAt,
                  ]),
                )
                .pipe(warn<ReadonlyArray<{ id: number }>>([]))
              asked = row === undefined ? null : { by, direction, run: row.id }
              yield* wake.open
              return asked
            }),
          ),
        asked: Effect.sync(() => asked),
        closeRun: runs.withPermit(close),
      })
    }),
  )
}

interface Moved {
  up: number
  down: number
  conflicts: number
  error: string | null
  tables: Record<string, { up: number; down: number }>
}
const noRun = (startedAt: number): Moved & { startedAt: number; why: string | null } => ({
  up: 0,
  down: 0,
  conflicts: 0,
  error: null,
  tables: {},
  startedAt,
  why: null,
})
