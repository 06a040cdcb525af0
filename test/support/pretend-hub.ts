/**
 * A hub's feed in a few lines, for tests of the school side: the newest state of each row with its seq, pages to a head, and
 * the ledger. It takes a school's batches without judging them; the test says which changes were not plainly applied.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { Deliver, type Delivered, type RowsLine } from "../../src/down/deliver.ts"
import { Libsql, type LibsqlFile } from "../../src/libsql/client.ts"
import type { Header, LineRow, Staged, Trailer } from "../../src/link/protocol.ts"
import type { Change, Exception } from "../../src/model/change.ts"
import type { Cursor } from "../../src/model/cursor.ts"
import { classOf, type Manifest, type Table } from "../../src/model/table.ts"
import type { Wire } from "../../src/model/value.ts"
import { column, openSchoolFile, type SchoolFile, table } from "./school-file.ts"
import { bytesOf } from "../../src/libsql/store-batch.ts"

export type Values = Readonly<Record<string, Wire>>
export const SCHOOL = "s1"
export const INCARNATION = "7d0c2e1c-0a5b-4f5e-9a55-0c1f3b1c2d3e"

const told = (name: string, key: ReadonlyArray<string>, columns: Table["columns"]): Table =>
  table(`schoolbus_${name}`, columns, { name: `schoolbus.${name}`, key, direction: "down", priority: "critical", strategy: "vps_wins", system: true })

export const systemTables: ReadonlyArray<Table> = [
  told(
    "ledger",
    ["incarnation", "batch"],
    [
      column("incarnation"),
      column("batch", "bigint"),
      column("school"),
      column("hash"),
      column("changes", "int"),
      column("exceptions"),
      column("at"),
    ],
  ),
  told(
    "conflicts",
    ["id"],
    [column("id"), column("school"), column("table_name"), column("row_key"), column("column_name"), column("kept"), column("status")],
  ),
  told("quarantine", ["id"], [column("id"), column("school"), column("change_id", "bigint"), column("change"), column("status")]),
]

interface Entry {
  readonly table: Table
  readonly key: ReadonlyArray<Wire>
  readonly row: Values | null
  readonly seq: number
}

export interface Page {
  readonly header: Header
  readonly lines: ReadonlyArray<RowsLine>
  readonly trailer: Trailer
}

export interface PageOptions {
  /** Rows of one line, lines of one page. */
  readonly lineRows?: number
  readonly pageLines?: number
  readonly full?: boolean
  readonly manifest?: number
}

export class PretendHub {
  seq = 0
  epoch = "e1"
  readonly entries = new Map<string, Entry>()
  private readonly cuts = new Map<number, string>()
  readonly manifest: Manifest

  constructor(manifest: Manifest) {
    this.manifest = manifest
  }

  private table(local: string): Table {
    const found = this.manifest.tables.find((t) => t.local === local || t.name === local)
    if (found === undefined) throw new Error(`no table ${local}`)
    return found
  }

  private set(table: Table, key: ReadonlyArray<Wire>, row: Values | null): void {
    this.entries.set(`${table.name} ${JSON.stringify(key)}`, { table, key, row, seq: ++this.seq })
  }

  put(local: string, row: Values): void {
    const table = this.table(local)
    this.set(
      table,
      table.key.map((name) => row[name] ?? null),
      row,
    )
  }

  remove(local: string, ...key: ReadonlyArray<Wire>): void {
    this.set(this.table(local), key, null)
  }

  row(local: string, ...key: ReadonlyArray<Wire>): Values | null {
    return this.entries.get(`${this.table(local).name} ${JSON.stringify(key)}`)?.row ?? null
  }

  rows(local: string): ReadonlyArray<Values> {
    return [...this.entries.values()].flatMap((entry) => (entry.table.local === local && entry.row !== null ? [entry.row] : []))
  }

  cutId(seq: number): string {
    const id = this.cuts.get(seq) ?? crypto.randomUUID().replaceAll("-", "").slice(0, 16)
    this.cuts.set(seq, id)
    return id
  }

  /** As a hub does that was put back. */
  forgetCutsAfter(seq: number): void {
    for (const known of [...this.cuts.keys()]) if (known > seq) this.cuts.delete(known)
  }

  /** A ledger row, as the one Postgres transaction of the batch writes it beside its effects. */
  ledger(batch: number, hash: string, exceptions: ReadonlyArray<Exception> = [], incarnation = INCARNATION): void {
    this.put("schoolbus_ledger", {
      incarnation,
      batch: String(batch),
      school: SCHOOL,
      hash,
      changes: 1,
      exceptions: JSON.stringify(exceptions),
      at: "2026-01-01 00:00:00+00",
    })
  }

  /** What the school would get for this request, as one page. */
  page(cursor: Cursor, staged: Staged | null, options: PageOptions = {}): Page {
    const known = cursor.epoch === this.epoch && cursor.seq > 0 && this.cuts.get(cursor.seq) === cursor.cut && options.full !== true
    const from = known ? cursor.seq : 0
    const resumed = staged !== null && this.cuts.get(staged.head) === staged.headCut ? staged : null
    const lines: Array<RowsLine> = []
    let complete = true
    outer: for (const cls of [10, 8, 5, 3, 1]) {
      const after = Math.max(from, resumed?.after[String(cls)] ?? 0)
      const due = [...this.entries.values()].filter((e) => classOf[e.table.priority] === cls && e.seq > after).sort((a, b) => a.seq - b.seq)
      for (let i = 0; i < due.length; ) {
        if (lines.length >= (options.pageLines ?? Number.POSITIVE_INFINITY)) {
          complete = false
          break outer
        }
        const first = due[i] as Entry
        const names = first.table.columns.map((c) => c.name)
        const rows: Array<LineRow> = []
        let last = 0
        for (; i < due.length && rows.length < (options.lineRows ?? 500) && due[i]?.table === first.table; i++) {
          const entry = due[i] as Entry
          rows.push([entry.key, entry.row === null ? null : names.map((name) => entry.row?.[name] ?? null)])
          last = entry.seq
        }
        const puts = rows.flatMap(([, row]) => (row === null ? [] : [row]))
        const isPlain = puts.length === rows.length
        const kind = isPlain ? "puts" : "rows"
        const text = JSON.stringify([kind, cls, last, first.table.name, names, isPlain ? puts : rows, rows.length])
        lines.push([kind, cls, last, first.table.name, rows.length, text])
      }
    }
    const rows = lines.reduce((n, line) => n + line[4], 0)
    const header: Header = {
      school: SCHOOL,
      epoch: this.epoch,
      from,
      full: !known,
      resumed: resumed !== null,
      manifest: options.manifest ?? this.manifest.version,
      head: this.seq,
      headCut: this.cutId(this.seq),
      left: rows,
      leftBytes: lines.reduce((n, [, , , , , text]) => n + text.length, 0),
    }
    // As on the wire: nothing is shared with the hub.
    return JSON.parse(JSON.stringify({ header, lines, trailer: { rows, complete } })) as Page
  }
}

export interface PulledSchool extends SchoolFile {
  readonly hub: PretendHub
  readonly deliver: Context.Service.Shape<typeof Deliver>
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Promise<A>
  /** The page that comes next. */
  readonly nextPage: (options?: PageOptions, deliver?: Context.Service.Shape<typeof Deliver>) => Promise<Page>
  /** One page. */
  readonly pullPage: (options?: PageOptions) => Promise<Delivered>
  /** Until a cut is applied. */
  readonly pull: (options?: PageOptions) => Promise<Delivered>
  /** All batches that no ledger row has settled yet, as the hub would find them. */
  readonly unsettled: () => ReadonlyArray<{ readonly number: number; readonly hash: string; readonly changes: ReadonlyArray<Change> }>
  readonly freezeAll: () => Promise<void>
  /** A deliver of its own on the same file, as after a restart. */
  readonly reopen: (file?: LibsqlFile) => Promise<Context.Service.Shape<typeof Deliver>>
  readonly one: (sql: string) => unknown
}

export const openPulledSchool = async (tables: ReadonlyArray<Table>): Promise<PulledSchool> => {
  const all = [...tables, ...systemTables]
  const school = await openSchoolFile(all)
  school.program(`UPDATE schoolbus_state SET school = '${SCHOOL}'`)
  const scope = Scope.makeUnsafe()
  const run = <A, E>(effect: Effect.Effect<A, E>): Promise<A> => Effect.runPromise(effect)
  const reopen: PulledSchool["reopen"] = async (file = school.file) =>
    Context.get(await run(Scope.provide(Layer.build(Layer.fresh(Deliver.layer.pipe(Layer.provide(Layer.succeed(Libsql, file))))), scope)), Deliver)
  const deliver = await reopen()
  const hub = new PretendHub(school.manifest)
  const nextPage: PulledSchool["nextPage"] = async (options = {}, by = deliver) => {
    const { cursor, staged } = await run(by.position)
    return hub.page(cursor, staged, options)
  }
  const pullPage: PulledSchool["pullPage"] = async (options) => {
    const { header, lines, trailer } = await nextPage(options)
    return run(deliver.page(header, lines, trailer))
  }
  const pull: PulledSchool["pull"] = async (options) => {
    for (;;) {
      const delivered = await pullPage(options)
      if (delivered.applied) return delivered
    }
  }
  return {
    ...school,
    hub,
    deliver,
    run,
    nextPage,
    pullPage,
    pull,
    unsettled: () =>
      school.read("SELECT number, hash, bytes FROM schoolbus_batch WHERE settled_at IS NULL ORDER BY number").map(([number, hash, bytes]) => ({
        number: Number(number),
        hash: String(hash),
        changes: new TextDecoder()
          .decode(bytesOf(bytes as Uint8Array))
          .trimEnd()
          .split("\n")
          .slice(1)
          .map((line) => JSON.parse(line) as Change),
      })),
    freezeAll: async () => void (await school.freeze()),
    reopen,
    one: (sql) => school.read(sql)[0]?.[0],
    close: async () => {
      await run(Scope.close(scope, Exit.void))
      await school.close()
    },
  }
}
