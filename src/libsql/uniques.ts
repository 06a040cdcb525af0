/**
 * What a REPLACE may displace rows by: the key and every unique constraint or index that the file itself enforces, also
 * those that a program of the school made, by expressions, under other collations, or for some rows only.
 */
import * as Effect from "effect/Effect"
import { sameName } from "../model/table.ts"
import { ident, type LibsqlError, type Tx } from "./client.ts"

export type Term =
  /** `fallback`: the default that REPLACE puts in the place of a NULL the column may not hold. */
  | { readonly column: string; readonly collation?: string; readonly fallback?: string }
  /** SQL over the table's own column names; a computed column too, which no UPDATE names. */
  | { readonly expression: string; readonly collation?: string }

export interface Unique {
  readonly terms: ReadonlyArray<Term>
}

/** The text between quotes, brackets or comment marks that begins at `at`; its end, exclusive. `at` itself when none begins there. */
const skipQuoted = (sql: string, at: number): number => {
  const open = sql[at] ?? ""
  if (sql.startsWith("--", at)) return sql.indexOf("\n", at) < 0 ? sql.length : sql.indexOf("\n", at) + 1
  if (sql.startsWith("/*", at)) return sql.indexOf("*/", at) < 0 ? sql.length : sql.indexOf("*/", at) + 2
  const close = open === "[" ? "]" : `'"\``.includes(open) ? open : ""
  if (open === "" || close === "") return at
  for (let i = at + 1; i < sql.length; i++) {
    if (sql[i] !== close) continue
    if (close !== "]" && sql[i + 1] === close) i++
    else return i + 1
  }
  return sql.length
}

/** `CREATE UNIQUE INDEX i ON t (a, lower(b) DESC) WHERE …` -> `["a", "lower(b)"]` (pure). */
export const indexTerms = (sql: string): ReadonlyArray<string> => {
  const terms: Array<string> = []
  let depth = 0
  let from = 0
  for (let i = 0; i < sql.length; i++) {
    const end = skipQuoted(sql, i)
    if (end > i) {
      i = end - 1
      continue
    }
    const char = sql[i]
    if (char === "(" && ++depth === 1) from = i + 1
    const isEnd = char === ")" && --depth === 0
    if (isEnd || (char === "," && depth === 1)) {
      terms.push(
        sql
          .slice(from, i)
          .trim()
          .replace(/\s+(?:asc|desc)$/i, ""),
      )
      from = i + 1
    }
    if (isEnd) break
  }
  return terms
}

interface IndexRow {
  readonly local: string
  readonly origin: string
  readonly sql: string | null
  /** JSON list of [column name or null, collation, default of a column that may not be null or null, not 0: computed]. */
  readonly terms: string
}

/** By the table's name in the file, as `sameName` spells it. */
export const readUniques = (tx: Tx): Effect.Effect<ReadonlyMap<string, ReadonlyArray<Unique>>, LibsqlError> =>
  Effect.gen(function* () {
    const rows = yield* tx.all<IndexRow>(
      `SELECT m.name AS local, l.origin, (SELECT s.sql FROM sqlite_master s WHERE s.type = 'index' AND s.name = l.name) AS sql,
              (SELECT json_group_array(json_array(i.name, i.coll,
                        (SELECT x.dflt_value FROM pragma_table_xinfo(m.name) x WHERE x.name = i.name AND x."notnull" = 1),
                        (SELECT x.hidden FROM pragma_table_xinfo(m.name) x WHERE x.name = i.name)))
                 FROM (SELECT * FROM pragma_index_xinfo(l.name) ORDER BY seqno) i WHERE i.key = 1) AS terms
         FROM schoolbus_tables t JOIN sqlite_master m ON m.type = 'table' AND m.name = t.local COLLATE NOCASE, pragma_index_list(m.name) l
        WHERE l."unique" = 1 ORDER BY l.origin <> 'pk', terms, sql`,
    )
    const uniques = new Map<string, Array<Unique>>()
    for (const row of rows) {
      const texts = row.sql === null ? [] : indexTerms(row.sql)
      const terms = (JSON.parse(row.terms) as ReadonlyArray<readonly [string | null, string, string | null, number | null]>).map(
        ([column, collation, fallback, hidden], i): Term =>
          column === null
            ? { expression: texts[i] ?? "NULL", collation }
            : hidden !== 0
              ? { expression: ident(column), collation }
              : { column, collation, ...(fallback === null ? {} : { fallback }) },
      )
      const found = uniques.get(sameName(row.local)) ?? []
      if (!found.some((other) => JSON.stringify(other.terms) === JSON.stringify(terms))) found.push({ terms })
      uniques.set(sameName(row.local), found)
    }
    return uniques
  })
