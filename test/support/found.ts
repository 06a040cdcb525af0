/** Tables as a catalog would find them, for a feed without a Postgres. */
import type { Installation } from "../../src/down/install.ts"
import type { Table } from "../../src/model/table.ts"
import type { Found } from "../../src/postgres/catalog.ts"

export const foundOf = (table: Table, more: Partial<Found> = {}): Found => ({
  rule: table,
  oid: "16400",
  filenode: "16400",
  stamp: { written: "700.1", facts: "a", key: "16405" },
  table,
  problems: [],
  columns: new Map(table.columns.map((column, i) => [column.name, { number: i + 1, missing: null, spelling: {} }])),
  ...more,
})

export const installation = (tables: ReadonlyArray<Table>): Installation => ({
  catalog: { found: tables.map((table) => foundOf(table)), toastable: new Map() },
  nameByOid: new Map(),
  sameDatabase: true,
  now: 0,
})
