/** Tables as Postgres describes them, joined with the config's rules; everything that cannot be synced is listed at once. */
import * as Effect from "effect/Effect"
import { type Audience, type Column, type ColumnRule, isReservedName, isThrough, type Reference, sameName, type Table } from "../model/table.ts"
import { kindOf, type Wire } from "../model/value.ts"
import { hasKeyRange } from "./key-types.ts"
import { readCatalogRows } from "./catalog-rows.ts"
import type { PostgresError, Session } from "./client.ts"
import { computedDefault, mustGive } from "./defaults.ts"
import { spelled, spelledTable } from "./spelling.ts"

/**
 * Why a table cannot be synced as it stands: the code is for scripts, the text says the thing, the reason and the remedy.
 */
export interface Problem {
  readonly code: ProblemCode
  readonly text: string
}

export type ProblemCode =
  | "missing"
  | "not_a_table"
  | "unlogged"
  | "no_key"
  | "replica_identity"
  | "column_missing"
  | "float_key"
  | "name"
  | "link_column"
  | "rule"
  | "no_right"
  | "row_security"
  | "unpublished"

/** The rules of one table, as config and the built-in list give them. */
export type Wanted = Pick<
  Table,
  "name" | "audience" | "direction" | "priority" | "strategy" | "columnStrategies" | "exclude" | "uniqueRule" | "insert" | "system"
> & {
  readonly local?: string
}

/** What stands in Postgres under the name of a wanted table. */
export interface Found {
  readonly rule: Wanted
  /** Of the relation; null = there is none of this name. */
  readonly oid: string | null
  /** Another number means that Postgres has written the table anew: TRUNCATE, VACUUM FULL, or an ALTER that may change values. */
  readonly filenode: string
  readonly stamp: Stamp
  /** null: it cannot be described as a table with a key. */
  readonly table: Table | null
  readonly problems: ReadonlyArray<Problem>
  readonly columns: ReadonlyMap<string, FoundColumn>
}

/** By which a change that was taken back is told: rows that were written in between may have come under another name, or without their key. */
export interface Stamp {
  /** Another one when the table's or its schema's row of the catalog was written, whatever for. */
  readonly written: string
  /** Of what stands in those rows: a right, an owner, a trigger. */
  readonly facts: string
  /** Of the primary key's index. */
  readonly key: string
}

export interface FoundColumn {
  /** Postgres's own number of the column: it stays through a rename, and is never given again. */
  readonly number: number
  /** What rows hold that are older than the column; null = NULL. Meaningless once the table has been written anew. */
  readonly missing: Wire
  /**
   * How its text comes about where that may change without a row changing: the expression of a generated column, the labels
   * of an enum (by oid: a new one changes nothing), the parts of a composite type. "" = nothing of the kind.
   */
  readonly spelling: Readonly<Record<string, string>>
}

export interface Catalog {
  readonly found: ReadonlyArray<Found>
  readonly tables: ReadonlyArray<Table>
  /** Of the tables together; those of single tables stand with them. One sentence each: the thing, the reason, the remedy. */
  readonly problems: ReadonlyArray<string>
  /** What programs of schools must know of a table; it is synced all the same. */
  readonly notes: ReadonlyArray<string>
  /** Columns whose updates may leave them out of the stream when unchanged, by table. */
  readonly toastable: ReadonlyMap<string, ReadonlySet<string>>
}

/** `"public.books"` -> `"books"`, `"library.books"` -> `"library_books"`. */
export const localName = (table: string): string => (table.startsWith("public.") ? table.slice("public.".length) : table.replace(".", "_"))

const ownAudienceColumns = (audience: Audience): ReadonlyArray<string> =>
  audience === "all" ? [] : isThrough(audience) ? Object.keys(audience.on) : [audience.column]

export const readCatalog = (session: Session, wanted: ReadonlyArray<Wanted>): Effect.Effect<Catalog, PostgresError> =>
  Effect.gen(function* () {
    const { relations, columns, types, indexes, references, constants } = yield* readCatalogRows(
      session,
      wanted.map((table) => table.name),
    )
    const typeByOid = new Map(types.map((row) => [row.oid, row]))
    const baseName = (oid: string): string => {
      let type = typeByOid.get(oid)
      while (type !== undefined && type.base !== "0") type = typeByOid.get(type.base)
      return type?.name ?? ""
    }
    const spellingOf = (oid: string): Readonly<Record<string, string>> => {
      let type = typeByOid.get(oid)
      while (type !== undefined && (type.base !== "0" || type.elem !== "0")) type = typeByOid.get(type.base !== "0" ? type.base : type.elem)
      if (type?.spelling == null) return {}
      // Labels of an enum stand under their oids; what a composite type is made of, within another one, under its own.
      const within = (JSON.parse(type.parts ?? "[]") as ReadonlyArray<string>).flatMap((part) =>
        Object.entries(spellingOf(part)).map(([name, text]) => [name === "parts" ? `parts of ${part}` : name, text]),
      )
      return { ...Object.fromEntries(within), ...(JSON.parse(type.spelling) as Record<string, string>) }
    }
    const relationByName = new Map(relations.map((row) => [row.tbl, row]))
    const toastable = new Map<string, Set<string>>()

    const describe = (rule: Wanted): Found => {
      const { name } = rule
      const relation = relationByName.get(name)
      const mine = columns.filter((column) => column.tbl === name)
      const problems: Array<Problem> = []
      const found = (table: Table | null, ...more: ReadonlyArray<Problem>): Found => ({
        rule,
        oid: relation?.oid ?? null,
        filenode: relation?.filenode ?? "",
        stamp: { written: relation?.written ?? "", facts: relation?.facts ?? "", key: relation?.key_index ?? "" },
        table,
        problems: [...more, ...problems],
        columns: new Map(
          mine.map(({ name: column, oid, number, missing, expression }) => [
            column,
            {
              number,
              spelling: expression === "" ? spellingOf(oid) : { expression },
              missing: missing === null ? null : constantToWire(kindOf(baseName(oid)), missing),
            },
          ]),
        ),
      })
      if (relation === undefined)
        return found(null, { code: "missing", text: `table ${name} does not exist; create it, or take it out of the config` })
      if (relation.kind !== "r") {
        const what =
          relation.kind === "p" ? "a partitioned table" : relation.kind === "v" || relation.kind === "m" ? "a view" : "not an ordinary table"
        return found(null, {
          code: "not_a_table",
          text: `${name} is ${what}; only ordinary tables can be synced${relation.kind === "p" ? ", so list its partitions instead" : ""}`,
        })
      }
      if (relation.child !== null) {
        const text = `table ${name} is inherited by ${relation.child}: a read of it shows rows of which the stream tells under another name; list only tables that nothing inherits from`
        return found(null, { code: "not_a_table", text })
      }
      if (relation.persistence !== "p") {
        const text = `table ${name} is unlogged or temporary, so its changes are not in the WAL; run ALTER TABLE ${spelledTable(name)} SET LOGGED`
        return found(null, { code: "unlogged", text })
      }
      const unique = indexes
        .filter((index) => index.tbl === name)
        .map((index) => ({ primary: index.is_primary, cols: JSON.parse(index.cols) as Array<string> }))
      const key = unique.find((index) => index.primary)?.cols
      if (key === undefined && relation.deferrable !== null) {
        const text = `table ${name} has a primary key that is deferrable, by which Postgres names no row of the stream; give it one that is not: ALTER TABLE ${spelledTable(name)} ${relation.deferrable} (foreign keys that refer to it are dropped before, and added after)`
        return found(null, { code: "no_key", text })
      }
      if (key === undefined) {
        const text = `table ${name} has no primary key, so its updates and deletes cannot be told apart; add one: ALTER TABLE ${spelledTable(name)} ADD PRIMARY KEY (…)`
        return found(null, { code: "no_key", text })
      }
      if (relation.identity !== "d" && relation.identity !== "f") {
        const text = `table ${name} has a replica identity that leaves out its key; run ALTER TABLE ${spelledTable(name)} REPLICA IDENTITY DEFAULT`
        problems.push({ code: "replica_identity", text })
      }
      if (rule.direction !== "up" && !(relation.reachable && relation.readable)) {
        const grants = [
          ...(relation.reachable ? [] : [`USAGE ON SCHEMA ${spelled(name.slice(0, name.indexOf(".")))}`]),
          ...(relation.readable ? [] : [`SELECT ON ${spelledTable(name)}`]),
        ].map((right) => `GRANT ${right} TO ${spelled(relation.role)}`)
        const text = `the hub's role may not read all columns of table ${name}; a DBA can allow it: ${grants.join("; ")}`
        problems.push({ code: "no_right", text })
      }
      if (rule.direction !== "up" && relation.filtered) {
        const text = `row security hides rows of table ${name} from the hub's role; make it the table's owner, or let it see all: ALTER ROLE ${spelled(relation.role)} BYPASSRLS`
        problems.push({ code: "row_security", text })
      }
      const local = rule.local ?? localName(name)
      if (isReservedName({ name, local })) {
        const text = `table ${name} would be called ${local} in the school's file, a name that SQLite or the sync itself uses there; rename it, or take it out of the config`
        problems.push({ code: "name", text })
      }
      const byName = Map.groupBy(mine, (column) => sameName(column.name))
      for (const same of byName.values()) {
        if (same.length < 2) continue
        const text = `columns ${same.map((column) => column.name).join(" and ")} of table ${name} differ only in capital letters, which is one name in a school's file; rename one of them`
        problems.push({ code: "name", text })
      }
      if (mine.some((column) => column.name === "__proto__")) {
        const text = `column __proto__ of table ${name} has the one name that no object of JavaScript keeps, so its values would be lost on the way; rename it: ALTER TABLE ${spelledTable(name)} RENAME COLUMN __proto__ TO proto`
        problems.push({ code: "name", text })
      }
      const known = new Set(mine.map((column) => column.name))
      const list = [...known].join(", ")
      for (const column of ownAudienceColumns(rule.audience)) {
        if (known.has(column)) continue
        problems.push({ code: "column_missing", text: `audience column ${column} of table ${name} does not exist; columns are ${list}` })
      }
      if (isThrough(rule.audience)) {
        const { through } = rule.audience
        const theirs = columns.flatMap((column) => (column.tbl === through ? [column.name] : []))
        for (const column of Object.values(rule.audience.on)) {
          if (theirs.length === 0 || theirs.includes(column)) continue
          const text = `the audience of table ${name} names column ${column} of ${through}, which does not exist; columns are ${theirs.join(", ")}`
          problems.push({ code: "link_column", text })
        }
      }
      for (const [column, strategy] of Object.entries(rule.columnStrategies)) {
        const strategic = mine.find((one) => one.name === column)
        const unfit = strategic === undefined ? null : unfitRule(strategy, kindOf(baseName(strategic.oid)), strategic.type)
        if (strategic === undefined) {
          problems.push({ code: "column_missing", text: `column ${column} of table ${name} has a strategy but does not exist; columns are ${list}` })
        } else if (unfit !== null) problems.push({ code: "rule", text: `column ${column} of table ${name} cannot have rule ${strategy}: ${unfit}` })
      }
      for (const column of rule.exclude ?? []) {
        if (known.has(column)) continue
        const text = `column ${column} of table ${name} is excluded from conflicts but does not exist; columns are ${list}`
        problems.push({ code: "column_missing", text })
      }
      for (const column of key) {
        if (kindOf(baseName(mine.find((c) => c.name === column)?.oid ?? "")) !== "float") continue
        const text = `key column ${column} of table ${name} is floating-point, which cannot name a row exactly; use numeric, bigint or uuid`
        problems.push({ code: "float_key", text })
      }
      toastable.set(name, new Set(mine.filter((column) => column.toastable).map((column) => column.name)))
      const table: Table = {
        ...rule,
        local,
        columns: mine.map((column): Column => {
          const kind = kindOf(baseName(column.oid))
          const constant = constants.get(`${column.tbl}\0${column.name}`)
          const computed = constant === undefined && column.def !== null ? computedDefault(column.def, baseName(column.oid), column.type) : null
          return {
            name: column.name,
            kind,
            type: column.type,
            notNull: column.not_null,
            generated: column.generated,
            ...(constant === undefined ? {} : { default: constantToWire(kind, constant) }),
            ...(computed === null ? {} : { computed }),
          }
        }),
        key,
        unique: unique.filter((index) => !index.primary).map((index) => index.cols),
        references: references
          .filter((row) => row.tbl === name)
          .map((row): Reference => ({ columns: JSON.parse(row.cols), table: row.target, to: JSON.parse(row.target_cols) })),
      }
      return found(hasKeyRange(table) ? { ...table, keyRange: true } : table)
    }
    const found = wanted.map(describe)
    const tables = found.flatMap(({ table }) => table ?? [])
    const problems: Array<string> = []
    const byLocal = new Map<string, string>()
    for (const table of tables) {
      const other = byLocal.get(sameName(table.local))
      if (other !== undefined)
        problems.push(`tables ${other} and ${table.name} would both be called ${table.local} in the school's file; rename one of them`)
      byLocal.set(sameName(table.local), table.name)
    }
    const filled = Map.groupBy(
      columns.filter((column) => column.identity || column.def !== null),
      (column) => column.tbl,
    )
    const notes = tables.flatMap((table) => {
      const names = mustGive(table, new Set(filled.get(table.name)?.map(({ name }) => name)))
      const one = names.length === 1
      return names.length === 0
        ? []
        : [
            `column${one ? "" : "s"} ${names.join(", ")} of table ${table.name} must not be null and ${one ? "has a default" : "have defaults"} that only Postgres can compute: a school's program gives ${one ? "a value" : "values"} in every INSERT`,
          ]
    })
    return { found, tables, problems, notes, toastable }
  })

const UNORDERED = /^(json|xml|point|line|lseg|box|path|polygon|circle)(\[\])*$/

/** Why a rule makes no sense for a type, with the remedy; null = it does. */
const unfitRule = (rule: ColumnRule, kind: ReturnType<typeof kindOf>, type: string): string | null => {
  switch (rule) {
    case "sum":
      return ["int", "bigint", "numeric", "float"].includes(kind) ? null : `${type} cannot be added; use newest_wins, max or manual`
    case "union":
    case "append":
      return kind === "text" && !/^(uuid|date|time|interval|bool|inet|cidr)/.test(type)
        ? null
        : `${type} is no list or text; use newest_wins or manual`
    case "max":
    case "min":
      return UNORDERED.test(type) ? `values of ${type} have no order; use newest_wins or manual` : null
    default:
      return null
  }
}

const constantToWire = (kind: ReturnType<typeof kindOf>, text: string): Wire =>
  kind === "bool"
    ? text === "true" || text === "t"
    : kind === "int" || (kind === "float" && Number.isFinite(Number(text)))
      ? Number(text)
      : kind === "bytea"
        ? text.replace(/^\\x/, "")
        : text

/** All that cannot be synced, of single tables and of them together. */
export const problemsOf = (catalog: Catalog): ReadonlyArray<string> => [
  ...catalog.found.flatMap(({ problems }) => problems.map(({ text }) => text)),
  ...catalog.problems,
]
