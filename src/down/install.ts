/**
 * The feed's tables, made those of the catalog: what still fits goes on, what does not pauses, what a person has accepted
 * takes its new shape. Runs inside one append; rows already in the feed are rewritten to the new columns in place, under
 * their old seqs, with what Postgres gives to rows that are older than a column.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import { classOf, isThrough, type Table } from "../model/table.ts"
import type { Catalog, Found } from "../postgres/catalog.ts"
import { audiencePosition, isHubOnly, streamedTables } from "./audience.ts"
import { type FeedTable, isUntold, type Paused } from "./entry.ts"
import { accept, fillToken, firstShape, judge, rememberNames, rulesOf, type Shape } from "./shape.ts"

export interface Installation {
  readonly catalog: Pick<Catalog, "found" | "toastable">
  /** Where relations stand now, by oid. */
  readonly nameByOid: ReadonlyMap<string, string>
  /** False: Postgres was put back or replaced, or the slot was; its own numbers say nothing. */
  readonly sameDatabase: boolean
  /** ms since 1970 */
  readonly now: number
}

interface TableRow {
  readonly id: number
  readonly name: string
  readonly class: number
  readonly audience: string
  readonly status: string
  readonly shape: string
  readonly recheck: number
  readonly paused: string | null
  readonly since: number | null
  readonly accept: number
}

/** What becomes of a table that the feed knows. */
interface Next {
  readonly shape: Shape
  readonly paused: Paused | null
  readonly recheck: boolean
  readonly from: ReadonlyArray<string | null> | null
  readonly send: "anew" | "all" | "differences" | null
}

const nextOf = (row: TableRow, shape: Shape, found: Found, installation: Installation): Next => {
  const { nameByOid, sameDatabase, now } = installation
  const standsAt = nameByOid.get(shape.oid) ?? null
  const verdict = judge(shape, found, standsAt === null || standsAt === shape.table.name ? null : standsAt, sameDatabase)
  const before = row.paused === null ? null : (JSON.parse(row.paused) as Paused)
  if (verdict.kind === "fits") {
    // What came while it was paused was not taken.
    const recheck = row.recheck === 1 || before !== null || verdict.compare
    return { shape: verdict.shape, paused: null, recheck, from: null, send: null }
  }
  if (row.accept === 1 && found.table !== null && found.problems.every(({ code }) => code === "link_column") && !isLinkBroken(found, installation)) {
    const accepted = accept(shape, found, found.table)
    return { shape: accepted.shape, paused: null, recheck: true, from: accepted.from, send: accepted.send }
  }
  const { code, reason } = verdict
  const paused: Paused = { code, reason, since: before?.code === code && before.reason === reason ? before.since : now }
  const told = { ...shape.told, ...rulesOf({ ...shape.told, ...found.rule }) }
  return { shape: { ...shape, told }, paused, recheck: row.recheck === 1, from: null, send: null }
}

/** Another table's rows are placed by a column that this one no longer has. */
const isLinkBroken = ({ rule, columns }: Found, { catalog }: Installation): boolean =>
  catalog.found.some(
    ({ rule: { audience } }) =>
      isThrough(audience) && audience.through === rule.name && Object.values(audience.on).some((name) => !columns.has(name)),
  )

/** Concatenated in pairs: a long chain would be nested deeper than SQLite reads. */
const concat = (parts: ReadonlyArray<string>): string => {
  if (parts.length === 1) return parts[0] as string
  const middle = Math.ceil(parts.length / 2)
  return `(${concat(parts.slice(0, middle))} || ${concat(parts.slice(middle))})`
}

const quoted = (text: string): string => `'${text.replaceAll("'", "''")}'`

/** Rewrites the rows that are there to the new columns. `from`: for each, the old column whose value it keeps; null = none. */
const rewriteBodies = (tx: Tx, id: number, before: Table, after: Table, from: ReadonlyArray<string | null>): Effect.Effect<void, LibsqlError> => {
  const old = before.columns.map((column) => column.name)
  const isSame = from.length === old.length && from.every((name, i) => name === old[i])
  if (isSame) return Effect.void
  const fills = after.columns.slice(old.length).map((column) => fillToken(column))
  const isLonger = from.length > old.length && old.every((name, i) => from[i] === name) && from.slice(old.length).every((name) => name === null)
  if (isLonger) {
    return Effect.asVoid(
      tx.run(
        `UPDATE entry SET body = substr(body, 1, length(body) - 1) || ?1, was = substr(was, 1, length(was) - 1) || ?1
          WHERE tbl = ?2 AND (body IS NOT NULL OR was IS NOT NULL)`,
        [`,${fills.join(",")}]`, id],
      ),
    )
  }
  const rewritten = (body: string) => {
    const picks = after.columns.map((column, i) => {
      const name = from[i] ?? null
      return name === null ? quoted(fillToken(column)) : `(${body} -> '$[${old.indexOf(name)}]')`
    })
    return `iif(${body} IS NULL, NULL, '[' || ${concat(picks.flatMap((pick, i) => (i === 0 ? [pick] : ["','", pick])))} || ']')`
  }
  return Effect.asVoid(
    tx.run(`UPDATE entry SET body = ${rewritten("body")}, was = ${rewritten("was")} WHERE tbl = ? AND (body IS NOT NULL OR was IS NOT NULL)`, [id]),
  )
}

/** When columns were last written, under their new names; a column that takes the name of another has none of its times. */
const renameTimes = (tx: Tx, id: number, before: Table, after: Table): Effect.Effect<void, LibsqlError> => {
  const nameNow = new Map(after.columns.map(({ name, number }) => [number ?? name, name]))
  const renamed = before.columns.flatMap(({ name, number }) => {
    const now = nameNow.get(number ?? name) ?? null
    return now === name ? [] : [[name, now]]
  })
  if (renamed.length === 0) return Effect.void
  return Effect.asVoid(
    tx.run(
      `UPDATE column_time SET times = (
         SELECT json_group_object(coalesce(m.value ->> 1, t.key), json(t.value)) FROM json_each(times) t LEFT JOIN json_each(?1) m ON m.value ->> 0 = t.key
          WHERE m.value IS NULL OR m.value ->> 1 IS NOT NULL) WHERE tbl = ?2`,
      [JSON.stringify(renamed), id],
    ),
  )
}

const feedTableOf = (
  id: number,
  shape: Shape,
  state: Pick<FeedTable, "loading" | "recheck" | "paused" | "since" | "streamed">,
  toastable: ReadonlySet<string> | undefined,
): FeedTable => {
  const { table } = shape
  const names = table.columns.map((column) => column.name)
  return {
    id,
    name: table.name,
    table,
    shape,
    ...state,
    hubOnly: isHubOnly(table),
    class: classOf[table.priority],
    audienceAt: audiencePosition(table.audience, table.columns),
    level: 0,
    columns: table.columns.map((column) => ({
      name: column.name,
      kind: column.kind,
      toastable: toastable?.has(column.name) ?? true,
      generated: column.generated,
      fill: fillToken(column),
    })),
    key: table.key.map((name) => names.indexOf(name)),
  }
}

const columnsOf = (table: Table): string => JSON.stringify(table.columns.map((column) => column.name))

const removeRows = (tx: Tx, id: number): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    for (const name of ["entry", "column_time", "unmet", "reread"]) yield* tx.run(`DELETE FROM ${name} WHERE tbl = ?`, [id])
    yield* tx.run("DELETE FROM tie WHERE rule = ?", [id])
  })

/** Its rows are no longer read, so no tombstones will tell of them: schools that missed that time know it by the table's new number. */
const forgetRows = (tx: Tx, id: number): Effect.Effect<number, LibsqlError> =>
  Effect.gen(function* () {
    yield* removeRows(tx, id)
    const [next] = yield* tx.all<{ id: number }>("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'tables' RETURNING seq AS id")
    if (next === undefined) return id
    yield* tx.run("UPDATE tables SET id = ? WHERE id = ?", [next.id, id])
    for (const name of ["losing", "lost"]) yield* tx.run(`UPDATE ${name} SET tbl = ? WHERE tbl = ?`, [next.id, id])
    return next.id
  })

/** `renumber`: gives the table's rows new seqs, in their order, under another class. */
export const installShapes = (
  tx: Tx,
  renumber: (tableId: number, cls: number) => Effect.Effect<void, LibsqlError>,
  installation: Installation,
): Effect.Effect<
  {
    readonly tables: ReadonlyArray<FeedTable>
    /** To be read whole: for the first time, or to be compared. */
    readonly reread: ReadonlySet<number>
    /** Placed by another rule than their rows were. */
    readonly rerouted: ReadonlySet<number>
  },
  LibsqlError
> =>
  Effect.gen(function* () {
    const { found: all, toastable } = installation.catalog
    const reread = new Set<number>()
    const rerouted = new Set<number>()
    const [hub] = yield* tx.all<{ manifest: number; looked: number }>("SELECT manifest, looked FROM hub")
    const present = yield* tx.all<TableRow>("SELECT id, name, class, audience, status, shape, recheck, paused, since, accept FROM tables")
    const shapeByName = new Map(present.map((row) => [row.name, JSON.parse(row.shape) as Shape]))
    // Rows that only travel up are not read, unless they place rows that come down.
    const streamed = streamedTables(
      all.flatMap(({ rule, table }) => {
        const known = shapeByName.get(rule.name)?.table ?? table
        return known === null ? [] : [{ ...known, ...rulesOf({ ...known, ...rule }) }]
      }),
    )
    const result: Array<FeedTable> = []
    for (const found of all) {
      const { rule } = found
      const isRead = streamed.has(rule.name)
      const cls = classOf[rule.priority]
      const audience = JSON.stringify(rule.audience)
      const row = present.find((one) => one.name === rule.name)
      const shape = shapeByName.get(rule.name)
      if (row === undefined || shape === undefined) {
        if (found.table === null) continue
        const first = firstShape(found.table, found)
        const [made] = yield* tx.all<{ id: number }>(
          "INSERT INTO tables (name, columns, class, audience, status, shape) VALUES (?,?,?,?,?,?) RETURNING id",
          [rule.name, columnsOf(first.table), cls, audience, isRead ? "loading" : "up", JSON.stringify(first)],
        )
        const id = made?.id ?? 0
        if (isRead) reread.add(id)
        if (isThrough(rule.audience)) rerouted.add(id)
        result.push(
          feedTableOf(id, first, { loading: isRead, recheck: false, paused: null, since: null, streamed: isRead }, toastable.get(rule.name)),
        )
        continue
      }
      let { id } = row
      const judged = nextOf(row, shape, found, installation)
      const next = { ...judged, shape: rememberNames(shape, judged.shape, (hub?.manifest ?? 0) + 1) }
      let { shape: own } = next
      const { table } = own
      let loading = isRead && (row.status === "loading" || row.status === "up")
      let { recheck } = next
      if (!isRead && row.status !== "up") id = yield* forgetRows(tx, id)
      if (next.send === "anew") {
        yield* tx.run("DELETE FROM entry WHERE tbl = ?", [id])
        yield* tx.run("DELETE FROM unmet WHERE tbl = ?", [id])
        yield* tx.run("DELETE FROM tie WHERE rule = ? AND side = 0", [id])
        yield* tx.run("DELETE FROM column_time WHERE tbl = ?", [id])
        loading = isRead
        recheck = false
      } else {
        const from = next.from ?? table.columns.map(({ name }) => (shape.table.columns.some((old) => old.name === name) ? name : null))
        yield* rewriteBodies(tx, id, shape.table, table, from)
        yield* renameTimes(tx, id, shape.table, table)
        // In no cut until every row is read: its values are of two shapes until then.
        if (next.send === "all" && isRead) {
          yield* tx.run("UPDATE entry SET class = -abs(class) WHERE tbl = ?", [id])
          loading = true
        }
      }
      // Schools are told that it comes down when its rows do.
      if (loading && shape.told.direction === "up") own = { ...own, told: { ...own.told, direction: "up" } }
      if (next.send !== null) yield* tx.run("DELETE FROM reread WHERE tbl = ?", [id])
      const isHidden = rule.direction === "up"
      if (row.class !== cls || (!loading && isRead && isHidden !== (row.status === "hidden"))) yield* renumber(id, loading || isHidden ? -cls : cls)
      // While its rows were not read it was not known which rows place them.
      if (row.audience !== audience || (isRead && row.status === "up" && isThrough(rule.audience))) rerouted.add(id)
      const isPaused = next.paused !== null
      const [left] = yield* tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM unmet WHERE tbl = ?) AS n", [id])
      const isMissed = isRead && (isPaused || recheck || left?.n === 1 || !installation.sameDatabase)
      const since = isMissed ? (row.since ?? hub?.looked ?? 0) : null
      yield* tx.run(
        "UPDATE tables SET columns = ?, class = ?, status = ?, shape = ?, recheck = ?, paused = ?, since = ?, accept = 0, after = CASE WHEN ? THEN NULL ELSE after END WHERE id = ?",
        [
          columnsOf(table),
          cls,
          isRead ? (loading ? "loading" : isHidden ? "hidden" : "ready") : "up",
          JSON.stringify(own),
          recheck ? 1 : 0,
          isPaused ? JSON.stringify(next.paused) : null,
          since,
          next.send !== null || recheck,
          id,
        ],
      )
      const entry = feedTableOf(id, own, { loading, recheck, paused: next.paused, since, streamed: isRead }, toastable.get(rule.name))
      if (!isPaused && isRead && (loading || recheck || left?.n === 1 || isUntold(entry))) reread.add(id)
      result.push(entry)
    }
    for (const { id } of present.filter(({ name }) => !all.some(({ rule }) => rule.name === name))) {
      yield* removeRows(tx, id)
      yield* tx.run("DELETE FROM tables WHERE id = ?", [id])
    }
    return { tables: result, reread, rerouted }
  })
