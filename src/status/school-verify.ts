/** Verify in a school: the file against head office's feed, over the link. The last result stands in the file. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import { type Repair, verify, type VerifyReport } from "../down/verify.ts"
import { Libsql, type LibsqlFile } from "../libsql/client.ts"
import { OpenLink } from "../link/open.ts"
import { SchoolFactStore, type SchoolFacts } from "./facts.ts"
import { stopReason } from "./judge.ts"
import { type Verified, Verify, VerifyRefused } from "./verify.ts"

const verifiedOf = (report: VerifyReport): Verified => ({
  startedAt: new Date(report.startedAt).toISOString(),
  seconds: report.tookMs / 1000,
  compared: "feed-school",
  equal: report.differences === 0,
  differences: report.differences,
  bytes: report.bytes,
  tables: report.tables,
  repaired: report.repaired,
})

const lastVerified = (db: LibsqlFile) =>
  Effect.map(
    db.read((tx) => tx.all<{ result: string }>("SELECT result FROM schoolbus_verified")),
    ([row]): Verified | null => (row === undefined ? null : (JSON.parse(row.result) as Verified)),
  )

/** Why there is no session with the hub (pure). `stop`: as it stands in the file. */
export const whyClosed = ({ link, linkDetail, paused }: Pick<SchoolFacts, "link" | "linkDetail" | "paused">, stop: string | null): string => {
  if (stop !== null || link === "stopped") return `this node is stopped: ${linkDetail || (stop === null ? "see schoolbus status" : stopReason(stop))}`
  if (paused) return "this school is paused at head office; resume it with: schoolbus schools resume"
  const detail = linkDetail === "" ? "" : `: ${linkDetail}`
  return link === "online"
    ? `the node begins anew with the hub${detail}; try again in a moment`
    : `the hub is not reachable now${detail}; compare when it is: schoolbus status`
}

const refuseClosed = Effect.gen(function* () {
  const facts = yield* (yield* SchoolFactStore).get
  const [state] = yield* (yield* Libsql).read((tx) => tx.all<{ stop: string | null }>("SELECT stop FROM schoolbus_state"))
  return yield* new VerifyRefused({ message: whyClosed(facts, state?.stop ?? null) })
})

/** One comparison, its result kept and logged. */
export const verifyNow = (repair: Repair): Effect.Effect<Verified, VerifyRefused, Libsql | OpenLink | SchoolFactStore> =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const open = yield* (yield* OpenLink).get
    if (open === null) return yield* refuseClosed
    const result = verifiedOf(yield* verify(open.link, open.identity, repair))
    yield* db.write((tx) =>
      tx.run(
        "INSERT INTO schoolbus_verified (id, at, result) VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET at = excluded.at, result = excluded.result",
        [Date.parse(result.startedAt), JSON.stringify(result)],
      ),
    )
    yield* result.equal
      ? Effect.logInfo(`verify: equal with head office, ${result.bytes} bytes over the link`)
      : Effect.logWarning(
          `verify: ${result.differences} rows differ from head office; ${result.repaired.up} go up, ${result.repaired.down} come down again`,
        )
    return result
  }).pipe(
    Effect.catchTags({
      NotComparable: (error) => Effect.fail(new VerifyRefused({ message: error.message })),
      LinkDown: (error) => Effect.fail(new VerifyRefused({ message: error.message })),
      LinkRefused: (error) => Effect.fail(new VerifyRefused({ message: error.message })),
      LibsqlError: (error) => Effect.fail(new VerifyRefused({ message: `the school's file: ${error.message}` })),
    }),
  )

export const schoolVerify: Layer.Layer<Verify, never, Libsql | OpenLink | SchoolFactStore> = Layer.effect(
  Verify,
  Effect.gen(function* () {
    const context = yield* Effect.context<Libsql | OpenLink | SchoolFactStore>()
    const db = yield* Libsql
    const one = yield* Semaphore.make(1)
    return Verify.of({
      run: (repair) => one.withPermit(Effect.provide(verifyNow(repair ? "all" : "none"), context)),
      last: Effect.orDie(lastVerified(db)),
      lost: () => Effect.succeed(null),
    })
  }),
)

/** What the nightly comparison may mend without a person: rows that only head office writes. */
export const verifyNightly = Effect.gen(function* () {
  const startedAt = yield* Clock.currentTimeMillis
  yield* verifyNow("down").pipe(
    Effect.catch((error) => Effect.logInfo(`the comparison of ${new Date(startedAt).toISOString()} was left out: ${error.message}`)),
  )
})
