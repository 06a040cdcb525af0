/** A decision about a unique value, taken back: as far as nobody has written there since. */
import * as Effect from "effect/Effect"
import type { PostgresError, Session } from "../postgres/client.ts"
import { renameRow } from "./by-value.ts"
import { type Follower, type Ground0, keyOf, refuse, type Undo, type UniqueConflict } from "./clash.ts"
import { currentKey } from "./coalesce.ts"
import { readKnownShapes } from "./known.ts"
import { changeOfRecord, keptChange } from "./records.ts"
import type { DecideRefused } from "./refused.ts"
import type { Row } from "./resolve.ts"
import { columnOf, type Place, readRow, writeRow } from "./rows.ts"
import { suggest } from "./unique.ts"
import { known } from "./work.ts"

export const undoClash = (
  session: Session,
  ground: Ground0,
  conflict: UniqueConflict,
  by: string,
): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const table = ground.tables.get(conflict.table_name)
    const shape = (yield* readKnownShapes(session, ground.tables, [conflict.table_name])).get(conflict.table_name)
    if (table === undefined || shape === undefined) return yield* refuse("not_possible", `table ${conflict.table_name} is no longer synced`)
    if (conflict.undo === null) return yield* refuse("not_possible", "what was decided here cannot be taken back; edit the row")
    const { keep, change, own, other, followers = [] } = JSON.parse(conflict.undo) as Undo
    const isStill = (place: Place, now: Row) =>
      Effect.map(readRow(session, place), (row) => row !== null && Object.entries(now).every(([name, value]) => row[name] === value))
    const otherPlace: Place | null = other === null ? null : { table, shape, key: other.key }
    if (other !== null && otherPlace !== null && !(yield* isStill(otherPlace, other.now)))
      return yield* refuse("not_possible", "the other row has been written again since; change it by hand")
    if (keep === "keep_local" && other !== null && otherPlace !== null) {
      // The two trade values; a third one stands in between.
      const [name, value] = Object.entries(other.now)[0] ?? ["", null]
      const mine: Place = { table, shape, key: keyOf(table, JSON.parse(conflict.mine ?? "{}") as Row) }
      const there = (yield* readRow(session, otherPlace)) ?? {}
      const here = (yield* readRow(session, mine)) ?? {}
      const free = yield* suggest(session, table, shape, name, there)
      yield* renameRow(session, otherPlace, there, name, free)
      yield* renameRow(session, mine, here, name, value)
      yield* renameRow(session, otherPlace, { ...there, [name]: free }, name, other.was[name] ?? null)
      return yield* setUndone(session, conflict, "vps", { ...(JSON.parse(conflict.mine ?? "{}") as Row), [name]: value }, by)
    }
    if (own !== null) {
      const place: Place = { table, shape, key: own.key }
      const row = yield* readRow(session, place)
      if (row === null || !(yield* isStill(place, own.now)))
        return yield* refuse("not_possible", "the row has been written again since; change it by hand")
      for (const [name, value] of Object.entries(own.set)) yield* renameRow(session, place, row, name, value)
      return yield* setUndone(session, conflict, "school", { ...(JSON.parse(conflict.mine ?? "{}") as Row), ...own.set }, by)
    }
    if (keep === "merge" || keep === "discard" || keep === "keep_remote") {
      for (const follower of followers) yield* waitAgain(session, ground, follower)
      if (other !== null && otherPlace !== null) yield* writeRow(session, otherPlace, other.was, true)
      const opened = yield* session.execute(
        "UPDATE schoolbus.quarantine SET status = 'open', change = $2, decided_by = NULL, decided_at = NULL WHERE id = $1::text::uuid AND status = 'discarded'",
        [conflict.quarantine, change],
      )
      if (opened === 0) return yield* refuse("not_possible", "the rest of the change has been written; edit the row")
      yield* session.execute(
        "UPDATE schoolbus.conflicts SET status = 'open', winner = 'open', kept = NULL, undo = NULL, decided_by = $2, decided_at = now() WHERE id = $1::text::uuid",
        [conflict.id, by],
      )
      return
    }
    return yield* refuse("not_possible", "what was decided here cannot be taken back; edit the row")
  })

/** A change that was made to refer to the other row waits for its own again, with what has become of its row since. */
const waitAgain = (session: Session, ground: Ground0, { quarantine, change }: Follower): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const kept = changeOfRecord(quarantine, change)
    const table = ground.tables.get(kept?.table ?? "")
    const shape = table === undefined ? undefined : (yield* readKnownShapes(session, ground.tables, [table.name])).get(table.name)
    if (kept === null || table === undefined || shape === undefined) return
    const place: Place = { table, shape, key: currentKey(kept) }
    const row = yield* readRow(session, place)
    const pointers = new Set(table.references.flatMap(({ columns }) => columns))
    const isFree = (name: string) => !pointers.has(name) && columnOf(table, name)?.generated === false
    const since = kept.op === "insert" && row !== null ? Object.fromEntries(Object.entries(row).filter(([name]) => isFree(name))) : {}
    if (row !== null && kept.op === "insert") yield* writeRow(session, place, null, true)
    if (row !== null && kept.op === "update") {
      const before = Object.entries(known(kept.base)).filter(([name]) => pointers.has(name) && name in kept.mine)
      yield* writeRow(session, place, Object.fromEntries(before), true)
    }
    yield* session.execute(
      "UPDATE schoolbus.quarantine SET status = 'open', reason = 'dependant', change = $2, decided_by = NULL, decided_at = NULL WHERE id = $1::text::uuid AND status = 'retried'",
      [quarantine, keptChange({ ...kept, mine: { ...kept.mine, ...since }, changes: [JSON.parse(change)] })],
    )
  })

const setUndone = (session: Session, conflict: UniqueConflict, winner: string, kept: Row, by: string): Effect.Effect<void, PostgresError> =>
  Effect.asVoid(
    session.execute(
      "UPDATE schoolbus.conflicts SET winner = $2, kept = $3, undo = NULL, decided_by = $4, decided_at = now() WHERE id = $1::text::uuid",
      [conflict.id, winner, JSON.stringify(kept), by],
    ),
  )
