/** What stands everywhere once quiet, held against what the rules say. */
import type { World } from "../support/world.ts"
import type { Edit } from "./expect.ts"
import type { Batch, Node } from "./node.ts"
import { readOffice, type Row, type Rows } from "./office.ts"
import type { SimTable } from "./schema.ts"

export interface Side {
  readonly node: Node
  /** Captured writes that no applied batch has carried yet, by id. */
  readonly edits: Map<number, Edit>
  /** Applied batches by number: what they were answered, and what was summed, until their ledger row has come down. */
  readonly applied: Map<number, { readonly batch: Batch; readonly answer: string; readonly summed: ReadonlyArray<string> }>
  /** Keys that wait for a person. */
  readonly refused: Set<string>
}

export const fail = (what: string, ...values: ReadonlyArray<unknown>): never => {
  throw new Error([what, ...values.map((value) => JSON.stringify(value, (_, v) => (v instanceof Set || v instanceof Map ? [...v] : v)))].join("\n  "))
}
export const same = (left: unknown, right: unknown): boolean => JSON.stringify(left) === JSON.stringify(right)
export const sorted = (row: Row | undefined | null): unknown => (row == null ? null : Object.entries(row).toSorted(([a], [b]) => (a < b ? -1 : 1)))

export const listOf = (rows: ReadonlyMap<string, Row>): ReadonlyArray<unknown> =>
  [...rows].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([key, row]) => [key, sorted(row)])
export const listed = (rows: Rows): ReadonlyArray<unknown> => [...rows].map(([name, all]) => [name, listOf(all)])

export const checkAgree = async (world: World, tables: ReadonlyArray<SimTable>, sides: ReadonlyArray<Side>, model: Rows): Promise<void> => {
  const office = await readOffice(world, tables)
  if (!same(listed(model), listed(office))) fail("head office holds other rows than the rules make", listed(model), listed(office))
  for (const { node, edits, refused } of sides) {
    // Writes that changed nothing in the end leave no change; every other has had its verdict.
    if (edits.size > 0) fail(`writes of ${node.id} never went up`, [...edits.values()])
    if (node.count("SELECT count(*) FROM changes") > 0) fail(`changes are left in ${node.id}`, node.list("SELECT * FROM changes"))
    const left = node.list<{ key: string; error: string | null }>(
      "SELECT key, error FROM schoolbus_behind WHERE (tbl, key) NOT IN (SELECT tbl, key FROM schoolbus_hold)",
    )
    const taken = left.filter((row) => !/UNIQUE/.test(row.error ?? ""))
    if (taken.length > 0) fail(`rows are left behind in ${node.id}`, taken)
    for (const table of tables) {
      const shown = new Map([...node.rows(table)].filter(([key]) => !refused.has(`${table.name} ${key}`)))
      const wanted = new Map(
        [...(office.get(table.name) ?? [])].filter(([key, row]) => row["school_id"] === node.id && !refused.has(`${table.name} ${key}`)),
      )
      // A row that a refused one's unique value keeps out waits behind until a person decides.
      for (const row of left)
        for (const key of wanted.keys())
          if (row.key.includes(String((JSON.parse(key) as Array<string>)[0]))) {
            wanted.delete(key)
            shown.delete(key)
          }
      if (!same(listOf(shown), listOf(wanted))) {
        const entries = await world.run(
          world.feedFile.read((tx) =>
            tx.all(
              "SELECT a.value, e.class, e.seq, e.key, e.body, e.born, (SELECT seq FROM hub) AS head FROM entry e JOIN audience a ON a.no = e.audience JOIN tables t ON t.id = e.tbl WHERE t.name = ?",
              [`public.${table.name}`],
            ),
          ),
        )
        const file = ["schoolbus_hold", "schoolbus_behind", "schoolbus_state"].map((name) => node.list(`SELECT * FROM ${name}`))
        const records =
          await world.sql`SELECT batch, change_id, table_name, row_key, op, reason, status FROM schoolbus.quarantine WHERE school = ${node.id}`
        fail(`${node.id} shows other rows of ${table.name} than head office holds`, listOf(shown), listOf(wanted), entries, file, records)
      }
    }
  }
  const ledger = await world.sql<Array<{ incarnation: string; batches: number; last: string }>>`
    SELECT l.incarnation::text, count(*)::int AS batches, max(i.last_batch)::text AS last
      FROM schoolbus.ledger l JOIN schoolbus.incarnations i ON i.id = l.incarnation GROUP BY 1`
  for (const { incarnation, batches, last } of ledger)
    if (String(batches) !== last) fail("a batch has no ledger row, or two", { incarnation, batches, last })
}
