/**
 * A person's (or a rule's) decision about two rows that want the same unique value. The other row is never deleted. What the
 * school wrote waits in quarantine until every index in which it clashes is decided, and is then carried out like a push.
 *
 *     rename_local   the school's row takes another value, free at head office
 *     keep_local     the school's row has its value, the other row takes a free one
 *     keep_remote    the other row has its value: the school's edit of the column is dropped, or its new row is left out
 *     merge          both are one: what the school wrote goes into the other row, and what refers to its row refers to that
 *     discard        the school's change is given up
 */
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import type { Wire } from "../model/value.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import { followKept, renameRow } from "./by-value.ts"
import { carryOut } from "./carry-out.ts"
import { currentKey, type RowChange } from "./coalesce.ts"
import { DecideRefused } from "./refused.ts"
import { readKnownShapes } from "./known.ts"
import { asPresent } from "./lost.ts"
import { alone, carryOutKept, type Kept, lockKept, settle } from "./quarantine.ts"
import { changeOfRecord, closeQuarantined, keptChange } from "./records.ts"
import type { Row } from "./resolve.ts"
import { columnOf, type Place, readRow, spellRow } from "./rows.ts"
import type { Shape } from "./shape.ts"
import { findClashes, suggest, visible } from "./unique.ts"
import type { Ground, Outcome } from "./work.ts"

export type UniqueChoice =
  | { readonly keep: "rename_local"; readonly value?: unknown; readonly unlessFree?: true }
  | { readonly keep: "keep_local" | "keep_remote" | "merge" | "discard" }

/** `office`: at the hub, where every row may be seen. `school`: only rows of that school may be touched. */
export type Authority = "office" | "school"

export interface UniqueConflict {
  readonly id: string
  readonly school: string
  readonly table_name: string
  readonly column_name: string | null
  readonly unique_columns: string | null
  readonly mine: string | null
  readonly theirs: string | null
  readonly suggestion: string | null
  readonly quarantine: string | null
  readonly status: string
  readonly undo: string | null
  readonly manifest: string
}

export const refuse = (code: DecideRefused["code"], message: string): DecideRefused => new DecideRefused({ code, message })
const isWire = (value: unknown): value is Wire => value === null || ["string", "number", "boolean"].includes(typeof value)
export const keyOf = (table: Table, row: Row): ReadonlyArray<Wire> => table.key.map((name) => row[name] ?? null)

export type Ground0 = Pick<Ground, "tables" | "had" | "times">

export const CLASH_COLUMNS =
  "id::text AS id, school, table_name, column_name, unique_columns, mine, theirs, suggestion, quarantine::text AS quarantine, status, undo, manifest::text AS manifest"

/** What a decision keeps for its undoing. */
export interface Undo {
  readonly keep: UniqueChoice["keep"]
  /** The change as it was kept. */
  readonly change: string
  /** Key of the school's row, and what its column shall hold again. */
  readonly own: { readonly key: ReadonlyArray<Wire>; readonly set: Row; readonly now: Row } | null
  /** The other row: what it held, what it holds since. */
  readonly other: { readonly key: ReadonlyArray<Wire>; readonly was: Row; readonly now: Row } | null
  /** Of a merge: changes that were made to refer to the other row, as they were kept. */
  readonly followers?: ReadonlyArray<Follower>
}

export interface Follower {
  readonly quarantine: string
  readonly change: string
}

export const decideClash = (
  session: Session,
  { tables, had, times }: Ground0,
  conflict: UniqueConflict,
  choice: UniqueChoice,
  by: string,
  authority: Authority,
): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    if (conflict.status !== "open") return yield* refuse("decided", "this clash is decided; undo it first")
    // Nothing else of a push's ground: the key of the row that another one goes into lies in no range of the school.
    const ground: Ground0 = { tables, had, times }
    const kept = yield* lockKept(session, conflict.quarantine ?? "").pipe(
      Effect.catchTag("QuarantineRefused", ({ code, message }) => Effect.fail(refuse(code, message))),
    )
    if (choice.keep === "discard") return yield* giveUp({ session, conflict, kept, by }, choice.keep)
    const change = changeOfRecord(kept.id, kept.change)
    const table = ground.tables.get(conflict.table_name)
    const shape = (yield* readKnownShapes(session, ground.tables, [conflict.table_name])).get(conflict.table_name)
    if (change === null || table === undefined || shape === undefined)
      return yield* refuse("not_possible", `table ${conflict.table_name} is no longer synced: discard the change, and write it by hand`)
    const row = asPresent(change, table)
    if (row === null)
      return yield* refuse("not_possible", `rows of ${table.name} have another key at head office since then: discard the change, and write it again`)
    const wanted = JSON.parse(conflict.mine ?? "{}") as Row
    const columns = JSON.parse(conflict.unique_columns ?? "[]") as ReadonlyArray<string>
    // The other row of this moment: it may have been renamed, or be another one.
    const clash = (yield* findClashes(session, table, shape, wanted)).find((one) => JSON.stringify(one.columns) === JSON.stringify(columns))
    const other = clash?.other
    const isTaken = other !== undefined && (yield* visible(session, ground.tables, table, other, conflict.school)) === null
    if (isTaken && choice.keep !== "rename_local") {
      if (choice.keep === "merge" || authority === "school")
        return yield* refuse("not_possible", "the value is taken by a row that this school does not see: rename, or discard the change")
    }
    const work: Deciding = { session, ground, conflict, kept, row, table, shape, wanted, by }
    switch (choice.keep) {
      case "merge":
        return other === undefined ? yield* carry(work, work.row, choice.keep, null) : yield* mergeInto(work, other)
      case "rename_local":
        return other === undefined && choice.unlessFree === true ? yield* carry(work, work.row, choice.keep, null) : yield* rename(work, choice.value)
      case "keep_local":
        return other === undefined ? yield* carry(work, work.row, choice.keep, null) : yield* renameOther(work, other)
      case "keep_remote":
        return other === undefined ? yield* carry(work, work.row, choice.keep, null) : yield* giveWay(work, columns)
    }
  })

interface Deciding {
  readonly session: Session
  readonly ground: Ground0
  readonly conflict: UniqueConflict
  readonly kept: Kept
  readonly row: RowChange
  readonly table: Table
  readonly shape: Shape
  readonly wanted: Row
  readonly by: string
}

const close = (
  { session, conflict, by }: Pick<Deciding, "session" | "conflict" | "by">,
  winner: "school" | "vps" | "merged",
  keptRow: Row | null,
  undo: Undo,
): Effect.Effect<unknown, PostgresError> =>
  session.execute(
    `UPDATE schoolbus.conflicts SET status = 'resolved', hold = false, winner = $2, kept = $3, strategy = $4, decided_by = $5, decided_at = now(), undo = $6 WHERE id = $1::text::uuid`,
    [conflict.id, winner, JSON.stringify(keptRow), undo.keep, by, JSON.stringify(undo)],
  )

/** The changed change is kept; once nothing else of it clashes it is carried out. */
const carry = (
  work: Deciding,
  row: RowChange,
  keep: UniqueChoice["keep"],
  other: Undo["other"],
  column: string | null = null,
): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const { session, ground, conflict, kept, wanted } = work
    const value = column === null ? {} : { [column]: row.mine[column] as Wire }
    const own = column === null ? null : { key: currentKey(row), set: { [column]: wanted[column] ?? null }, now: value }
    yield* close(work, keep === "keep_remote" ? "vps" : "school", { ...wanted, ...value }, { keep, change: kept.change, own, other })
    yield* session.execute("UPDATE schoolbus.quarantine SET change = $2 WHERE id = $1::text::uuid", [
      kept.id,
      keptChange({ ...row, changes: [JSON.parse(kept.change)] }),
    ])
    if (column !== null) yield* followKept(session, ground.tables, conflict.school, work.table, wanted, column, value[column] ?? null)
    const [left] = yield* session.query<{ n: number }>(
      "SELECT count(*)::int AS n FROM schoolbus.conflicts WHERE quarantine = $1::text::uuid AND status = 'open'",
      [kept.id],
    )
    if ((left?.n ?? 0) > 0) return
    const refusal = yield* carryOutKept(session, ground, kept, row, work.by)
    if (refusal !== null) return yield* refuse("not_possible", `${refusal.reason}: ${refusal.detail}`)
  })

/** Free values that are tried: another school may take the same one in the same moment. */
const RENAME_TRIES = 3

const rename = (work: Deciding, given: unknown): Effect.Effect<void, DecideRefused | PostgresError> =>
  given !== undefined
    ? renameTo(work, given)
    : Effect.gen(function* () {
        const { session } = work
        for (let tries = 1; ; tries++) {
          yield* session.execute("SAVEPOINT rename")
          const failed = yield* renameTo(work, undefined).pipe(
            Effect.as(null),
            Effect.catchTag("DecideRefused", (refused) => Effect.succeed(refused)),
          )
          yield* session.execute(failed === null ? "RELEASE SAVEPOINT rename" : "ROLLBACK TO SAVEPOINT rename; RELEASE SAVEPOINT rename")
          if (failed === null) return
          if (tries === RENAME_TRIES || !failed.message.startsWith("unique: ")) return yield* failed
        }
      })

const renameTo = (work: Deciding, given: unknown): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const { session, conflict, table, shape, row, wanted } = work
    const column = conflict.column_name
    if (column === null) return yield* refuse("not_possible", "none of the columns can be renamed: keep one of the rows, or edit the change")
    if (given !== undefined && !isWire(given)) return yield* refuse("not_possible", "the value must be a text, a number, true, false or null")
    // A suggestion is only as good as the moment it was made in.
    const value = given ?? (yield* suggest(session, table, shape, column, wanted))
    if (value === null) return yield* refuse("not_possible", "no free value was found: name one")
    const spelled = yield* spellRow(session, { table, shape }, { [column]: value })
    if ("refused" in spelled) return yield* refuse("not_possible", spelled.refused)
    return yield* carry(work, { ...row, mine: { ...row.mine, ...spelled.ok } }, "rename_local", null, column)
  })

const renameOther = (work: Deciding, other: Row): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const { session, conflict, table, shape, row } = work
    const column = conflict.column_name
    if (column === null) return yield* refuse("not_possible", "none of the columns can be renamed: keep the other row, or edit the change")
    const place: Place = { table, shape, key: keyOf(table, other) }
    const value = yield* suggest(session, table, shape, column, other)
    if (value === null) return yield* refuse("not_possible", "no free value was found for the other row")
    yield* readRow(session, place)
    yield* renameRow(session, place, other, column, value)
    return yield* carry(work, row, "keep_local", { key: place.key, was: { [column]: other[column] ?? null }, now: { [column]: value } })
  })

/** The other row's value stands: an edit loses its column, a new row its value where it can be empty; else it is left out. */
const giveWay = (work: Deciding, columns: ReadonlyArray<string>): Effect.Effect<void, DecideRefused | PostgresError> => {
  const { row, table, conflict } = work
  if (row.op === "update") {
    const mine = Object.fromEntries(Object.entries(row.mine).filter(([name]) => !columns.includes(name)))
    if (Object.keys(mine).length === 0 && row.newKey === null) return giveUp(work, "keep_remote")
    return carry(work, { ...row, mine }, "keep_remote", null)
  }
  const column = conflict.column_name
  if (column === null || columnOf(table, column)?.notNull !== false) return giveUp(work, "keep_remote")
  return carry(work, { ...row, mine: { ...row.mine, [column]: null } }, "keep_remote", null, column)
}

const giveUp = (work: Pick<Deciding, "session" | "conflict" | "kept" | "by">, keep: "keep_remote" | "discard"): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const { session, conflict, kept, by } = work
    yield* close(work, "vps", conflict.theirs === null ? null : (JSON.parse(conflict.theirs) as Row), {
      keep,
      change: kept.change,
      own: null,
      other: null,
    })
    yield* closeQuarantined(session, [[kept.id, "discarded", by]])
  })

const mergeInto = (work: Deciding, other: Row): Effect.Effect<void, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const { session, ground, conflict, kept, row, table, shape, wanted, by } = work
    if (row.op !== "insert") return yield* refuse("not_possible", "both rows stand at head office already: rename one of them")
    const key = keyOf(table, other)
    const mine = { ...row.mine, ...Object.fromEntries(table.key.map((name, i) => [name, key[i] ?? null])) }
    const change: RowChange = { ...row, key, mine, base: {}, joined: [], isOfAnother: true, changes: [JSON.parse(kept.change)] }
    const tables = new Map(ground.tables).set(table.name, { ...table, strategy: "merge" as const })
    const [outcome] = yield* carryOut(session, { ...ground, ...alone, tables, school: conflict.school }, [change])
    if (outcome === undefined || outcome.refusal !== null)
      return yield* refuse("not_possible", `${outcome?.refusal?.reason ?? "refused"}: ${outcome?.refusal?.detail ?? ""}`)
    const now = (yield* readRow(session, { table, shape, key })) ?? {}
    const changed = Object.keys(now).filter((name) => now[name] !== other[name])
    const pick = (from: Row): Row => Object.fromEntries(changed.map((name) => [name, from[name] ?? null]))
    const undo: Undo = { keep: "merge", change: kept.change, own: null, other: { key, was: pick(other), now: pick(now) } }
    yield* close(work, "merged", now, undo)
    yield* closeQuarantined(session, [[kept.id, "discarded", by]])
    yield* noteFollowers(session, conflict.id, undo, yield* repoint(session, ground, conflict.school, table, wanted, now))
  })

const noteFollowers = (session: Session, id: string, undo: Undo, followers: ReadonlyArray<Follower>): Effect.Effect<void, PostgresError> =>
  followers.length === 0
    ? Effect.void
    : Effect.asVoid(
        session.execute("UPDATE schoolbus.conflicts SET undo = $2 WHERE id = $1::text::uuid", [
          id,
          JSON.stringify({ ...undo, followers: [...(undo.followers ?? []), ...followers] }),
        ]),
      )

const presentOf = (tables: ReadonlyMap<string, Table>, kept: RowChange | null): RowChange | null => {
  const table = tables.get(kept?.table ?? "")
  return kept === null || table === undefined ? kept : asPresent(kept, table)
}

/** Waiting changes of the school that refer to the merged row refer to the row that it went into; answers those that were carried out. */
const repoint = (
  session: Session,
  ground: Ground0,
  school: string,
  table: Table,
  from: Row,
  to: Row,
): Effect.Effect<ReadonlyArray<Follower>, PostgresError> =>
  Effect.gen(function* () {
    const followers: Array<Follower> = []
    const children = [...ground.tables.values()].flatMap((child) =>
      child.references.flatMap((reference) => (reference.table === table.name ? [{ child, reference }] : [])),
    )
    if (children.length === 0) return followers
    const waiting = yield* session.query<Kept>(
      `SELECT id::text AS id, school, incarnation::text AS incarnation, batch::text AS batch, change, status FROM schoolbus.quarantine
        WHERE school = $1 AND status = 'open' AND table_name = ANY ($2::text[]) ORDER BY at, id FOR UPDATE`,
      [school, [...new Set(children.map(({ child }) => child.name))]],
    )
    for (const kept of waiting) {
      const row = presentOf(ground.tables, changeOfRecord(kept.id, kept.change))
      const own = row === null ? [] : children.filter(({ child }) => child.name === row.table)
      const set: Record<string, Wire> = {}
      for (const { reference } of own) {
        if (!reference.columns.every((name, i) => row?.mine[name] === (from[reference.to[i] ?? ""] ?? null))) continue
        reference.columns.forEach((name, i) => {
          set[name] = to[reference.to[i] ?? ""] ?? null
        })
      }
      if (row === null || Object.keys(set).length === 0) continue
      const moved: RowChange = { ...row, mine: { ...row.mine, ...set }, joined: [] }
      const [outcome] = yield* carryOut(session, { ...ground, ...alone, school }, [moved])
      if (outcome === undefined || outcome.refusal !== null) continue
      yield* settle(session, ground, kept, [outcome], "the row that it refers to was merged")
      followers.push({ quarantine: kept.id, change: kept.change })
    }
    return followers
  })

/** Changes of this push that refer to a row which was merged before. */
export const repointMerged = (
  session: Session,
  ground: Ground0,
  school: string,
  refused: ReadonlyArray<Outcome>,
): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const parents = new Set(
      refused.flatMap(({ row, refusal }) =>
        refusal?.reason === "foreign_key" ? (ground.tables.get(row.table)?.references.map((reference) => reference.table) ?? []) : [],
      ),
    )
    if (parents.size === 0) return
    const merged = yield* session.query<{ id: string; tbl: string; mine: string; kept: string; undo: string | null }>(
      `SELECT id::text AS id, table_name AS tbl, mine, kept, undo FROM schoolbus.conflicts WHERE school = $1 AND kind = 'unique' AND status = 'resolved' AND winner = 'merged' AND table_name = ANY ($2::text[])`,
      [school, [...parents]],
    )
    for (const { id, tbl, mine, kept, undo } of merged) {
      const table = ground.tables.get(tbl)
      if (table === undefined) continue
      const followers = yield* repoint(session, ground, school, table, JSON.parse(mine) as Row, JSON.parse(kept) as Row)
      if (undo !== null) yield* noteFollowers(session, id, JSON.parse(undo) as Undo, followers)
    }
  })
