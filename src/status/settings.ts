/** How a node syncs by itself, as a person may change it while it runs. What was set stands in the node's own file and outlives restarts. */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { z } from "zod"
import { Libsql, type LibsqlError } from "../libsql/client.ts"
import { type Metered, parseHours, printHours } from "../link/metered.ts"

/** A batch holds no more changes than this, whatever is asked for. */
const MAX_BATCH = 2_000
/** Minutes between two cycles when only hours or a budget are given. */
const CYCLE_MINUTES = 15

export const SyncSettings = z.strictObject({
  /** False: nothing moves until somebody asks for a sync. */
  auto: z.boolean(),
  /** 0: rows and changes travel as they come. */
  intervalMinutes: z.number().min(0).max(1440),
  /** Changes of one batch, at most. */
  batch: z.number().int().min(1).max(MAX_BATCH),
  /** The longest wait between two attempts to reach head office. */
  retryMaxSeconds: z.number().int().min(1).max(3600),
  /** Megabytes a day, both directions; null = no limit. */
  budgetMb: z.number().positive().nullable(),
  /** When it may call: `["19:00-06:00"]`; empty = always. */
  hours: z.array(z.string().refine((text) => !("refused" in parseHours([text])), "must be a time of day like 19:00-06:00")).max(24),
})
export type SyncSettings = z.infer<typeof SyncSettings>

const FIRST: SyncSettings = { auto: true, intervalMinutes: 0, batch: MAX_BATCH, retryMaxSeconds: 30, budgetMb: null, hours: [] }

export const meteredOf = (settings: SyncSettings): Metered | null => {
  const hours = parseHours(settings.hours)
  if (settings.intervalMinutes === 0 && settings.budgetMb === null && settings.hours.length === 0) return null
  return {
    cycleMinutes: settings.intervalMinutes || CYCLE_MINUTES,
    budgetBytes: settings.budgetMb === null ? null : Math.round(settings.budgetMb * 1_000_000),
    hours: "refused" in hours ? [] : hours,
  }
}

const ofMetered = (metered: Metered | null): Partial<SyncSettings> =>
  metered === null
    ? {}
    : {
        intervalMinutes: metered.cycleMinutes,
        budgetMb: metered.budgetBytes === null ? null : metered.budgetBytes / 1_000_000,
        hours: metered.hours.map((one) => printHours([one])),
      }

export class Settings extends Context.Service<
  Settings,
  {
    readonly get: Effect.Effect<SyncSettings>
    readonly set: (part: Partial<SyncSettings>) => Effect.Effect<SyncSettings, LibsqlError>
    /** Completes with the next change. */
    readonly changed: Effect.Effect<void>
  }
>()("schoolbus/status/Settings") {
  /** `metered`: what the command line says; what was set since then goes before it. */
  static readonly layer = (metered: Metered | null): Layer.Layer<Settings, never, Libsql> =>
    Layer.effect(
      Settings,
      Effect.gen(function* () {
        const db = yield* Libsql
        const [row] = yield* Effect.orDie(db.read((tx) => tx.all<{ value: string }>("SELECT value FROM schoolbus_setting WHERE name = 'sync'")))
        const stored = SyncSettings.partial().safeParse(row === undefined ? {} : JSON.parse(row.value))
        let own: Partial<SyncSettings> = stored.success ? (stored.data as Partial<SyncSettings>) : {}
        let next = yield* Deferred.make<void>()
        const get = Effect.sync((): SyncSettings => ({ ...FIRST, ...ofMetered(metered), ...own }))
        return Settings.of({
          get,
          set: (part) =>
            Effect.gen(function* () {
              const before = yield* get
              own = { ...own, ...part }
              yield* db.write((tx) =>
                tx.run("INSERT INTO schoolbus_setting (name, value) VALUES ('sync', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", [
                  JSON.stringify(own),
                ]),
              )
              const now = yield* get
              if (JSON.stringify(now) !== JSON.stringify(before)) {
                const told = next
                next = yield* Deferred.make<void>()
                yield* Deferred.succeed(told, undefined)
              }
              return now
            }),
          changed: Effect.suspend(() => Deferred.await(next)),
        })
      }),
    )
}
