/**
 * Open writes as the lines of a batch, made by SQLite itself where nothing is in doubt: new rows and edits of one table, the
 * key unchanged, which no later open write touches, of values that their columns allow. The first write of another kind ends
 * the run; it and what hangs on it are for `history.ts`. The lines are those that `freeze.ts` makes of the same writes.
 */
import { localKeySql } from "../model/key.ts"
import type { Column, Table } from "../model/table.ts"
import type { Kind } from "../model/value.ts"
import { ident } from "./client.ts"

const literal = (text: string): string => `'${text.replaceAll("'", "''")}'`

/** JSON of a value; NULL when the kind does not allow it. */
const jsonSql = (kind: Exclude<Kind, "float">, value: string): string => {
  const typed = (type: string, text: string) => `CASE typeof(${value}) WHEN '${type}' THEN ${text} WHEN 'null' THEN 'null' END`
  switch (kind) {
    case "int":
      return typed("integer", `iif(${value} BETWEEN -2147483648 AND 2147483647, ${value}, NULL)`)
    case "bigint":
      return typed("integer", `'"' || ${value} || '"'`)
    case "bool":
      return typed("integer", `CASE ${value} WHEN 0 THEN 'false' WHEN 1 THEN 'true' END`)
    case "bytea":
      return typed("blob", `'"' || lower(hex(${value})) || '"'`)
    case "numeric":
    case "text":
      return typed("text", `json_quote(${value})`)
  }
}

/** SQLite would round the number in a text; what is text stands for NaN and the infinities. */
const floatSql = (value: string): string =>
  `CASE typeof(${value}) WHEN 'real' THEN ${value} WHEN 'integer' THEN CAST(${value} AS REAL) WHEN 'null' THEN CAST('null' AS BLOB)
     WHEN 'text' THEN CASE WHEN ${value} IN ('NaN', 'Infinity', '-Infinity') THEN CAST('"' || ${value} || '"' AS BLOB) END END`

/** Expressions put together to pieces: a text as BLOB, or a number of its own. */
const pieces = () => {
  const done: Array<string> = []
  let open: Array<string> = []
  const close = (): void => {
    if (open.length > 0) done.push(`CAST(${open.join(" || ")} AS BLOB)`)
    open = []
  }
  return {
    text: (sql: string) => void open.push(sql),
    /** `when`: a condition; else nothing stands there. */
    value: (kind: Kind, before: string, value: string, when: string) => {
      if (kind !== "float") return void open.push(`CASE WHEN ${when} THEN ${literal(before)} || ${jsonSql(kind, value)} ELSE '' END`)
      open.push(`CASE WHEN ${when} THEN ${literal(before)} ELSE '' END`)
      close()
      done.push(`CASE WHEN ${when} THEN ${floatSql(value)} ELSE X'' END`)
    },
    take: (): ReadonlyArray<string> => {
      close()
      return done
    },
  }
}

interface NewLine {
  readonly sql: string
  /** No value is of a kind that its column does not allow. */
  readonly isAllowed: string
}

/** A value for SQLite's JSON functions, and when it is none that the column allows (or that is NULL). */
const memberSql = (kind: Exclude<Kind, "float">, value: string): { readonly sql: string; readonly fault: string } => {
  const isNo = (type: string) => `typeof(${value}) NOT IN ('${type}', 'null')`
  switch (kind) {
    case "int":
      return { sql: value, fault: `${isNo("integer")} OR ${value} NOT BETWEEN -2147483648 AND 2147483647` }
    case "bigint":
      return { sql: `'' || ${value}`, fault: isNo("integer") }
    case "bool":
      return { sql: `json(CASE ${value} WHEN 0 THEN 'false' WHEN 1 THEN 'true' END)`, fault: `${isNo("integer")} OR ${value} NOT IN (0, 1)` }
    case "bytea":
      return { sql: `iif(${value} IS NULL, NULL, lower(hex(${value})))`, fault: isNo("blob") }
    case "numeric":
    case "text":
      // Every text is between the two; to ask for its type takes longer.
      return { sql: value, fault: `${value} < '' COLLATE BINARY OR ${value} >= X'' COLLATE BINARY` }
  }
}

/** The line of a new row; null: SQLite's JSON would print a value otherwise, or it is too wide. */
const newLineSql = (table: Table, columns: ReadonlyArray<Column>): NewLine | null => {
  const members = new Map<string, ReturnType<typeof memberSql>>()
  for (const { name, kind } of columns) if (kind !== "float") members.set(name, memberSql(kind, `t.${ident(name)}`))
  const key = table.key.map((name) => members.get(name)?.sql)
  if (members.size < columns.length || members.size > MAX_WHOLE_COLUMNS || key.includes(undefined)) return null
  const mine = [...members].map(([name, { sql }]) => `${literal(name)}, ${sql}`)
  const form = `{"id":%d,"table":${JSON.stringify(table.name).replaceAll("%", "%%")},"key":%s,"at":%d,"op":"insert","base":{},"mine":%s}\n`
  return {
    sql: `format(${literal(form)}, c.id, json_array(${key.join(", ")}), c.at, json_object(${mine.join(", ")}))`,
    isAllowed: `(${[...members.values()].map(({ fault }) => fault).join(" OR ")}) IS NOT TRUE`,
  }
}

/** SQLite takes expressions of a thousand parts. */
export const MAX_PLAIN_COLUMNS = 200

/** Its functions take so many arguments, two of each column. */
const MAX_WHOLE_COLUMNS = 60

export interface LinesQuery {
  /** Of open writes after ?1, at most ?2: id, 1 when nothing is in doubt, and the pieces of a line. */
  readonly sql: string
  /** How many pieces come before those of the new values. */
  readonly heads: number
  /** The same ones as one row: how many, how many of them are new rows in which nothing is in doubt, last id, and their lines; null: not of this table. */
  readonly whole: string | null
}

/** `columns`: positions of those that travel; `computed`: of those that Postgres computes, which a plain write leaves alone. */
export const linesSql = (table: Table, tbl: number, columns: ReadonlyArray<number>, computed: ReadonlyArray<number> = []): LinesQuery => {
  const all = columns.map((i) => ({ i, column: table.columns[i] as Column }))
  const keys = table.key.map((name) => table.columns.findIndex((column) => column.name === name))
  const key = keys.map((i) => jsonSql((table.columns[i]?.kind ?? "text") as Exclude<Kind, "float">, `c.v${i}`)).join(` || ',' || `)
  const now = (column: Column) => `t.${ident(column.name)}`
  const isSame = (i: number, column: Column) => `typeof(c.v${i}) = typeof(${now(column)}) AND c.v${i} IS (+${now(column)}) COLLATE BINARY`
  const head = pieces()
  head.text(`'{"id":' || c.id || ${literal(`,"table":${JSON.stringify(table.name)},"key":[`)} || ${key} || '],"at":' || c.at`)
  head.text(`CASE c.op WHEN 'I' THEN ',"op":"insert","base":{' ELSE ',"op":"update","base":{' END`)
  for (const [n, { i, column }] of all.entries())
    head.value(column.kind, `${n > 0 ? "," : ""}${JSON.stringify(column.name)}:`, `c.v${i}`, "c.op = 'U'")
  head.text(`'},"mine":{'`)
  const mine = pieces()
  for (const { i, column } of all) {
    mine.value(column.kind, `,${JSON.stringify(column.name)}:`, now(column), `c.op = 'I' OR NOT (${isSame(i, column)})`)
  }
  const heads = head.take()
  const found = table.key.map((name, n) => `t.${ident(name)} = c.v${keys[n]}`).join(" AND ")
  // A collation may find the row under another spelling of its key.
  // A row that was there before its insert had them, too.
  const isLeftAlone = `CASE c.op WHEN 'U' THEN ${computed.map((i) => isSame(i, table.columns[i] as Column)).join(" AND ")}
     ELSE NOT EXISTS (SELECT 1 FROM changes d WHERE d.tbl = c.tbl AND d.key = c.key AND d.batch IS NULL AND d.op <> 'I') END`
  const isLast = `c.key = ${localKeySql(table, "t.")}
     AND NOT EXISTS (SELECT 1 FROM changes n WHERE n.tbl = c.tbl AND n.key = c.key AND n.id > c.id AND n.batch IS NULL AND n.op <> 'I')
     ${computed.length === 0 ? "" : `AND ${isLeftAlone}`}`
  const isPlain = `c.tbl = ${tbl} AND (c.op = 'I' OR (c.op = 'U' AND c.new_key IS NULL)) AND ${isLast}`
  const open = `FROM changes c LEFT JOIN ${ident(table.local)} t ON c.tbl = ${tbl} AND ${found} WHERE c.batch IS NULL AND c.id > ?1 ORDER BY c.id LIMIT ?2`
  const line = newLineSql(
    table,
    all.map(({ column }) => column),
  )
  return {
    sql: `SELECT c.id, ${isPlain}, ${[...heads, ...mine.take()].join(",\n ")} ${open}`,
    heads: heads.length,
    whole:
      line === null
        ? null
        : `SELECT count(*), count(line), max(id), CAST(group_concat(line, '') AS BLOB) FROM (
             SELECT c.id, iif(c.tbl = ${tbl} AND c.op = 'I' AND ${isLast} AND ${line.isAllowed}, ${line.sql}, NULL) AS line ${open})`,
  }
}
