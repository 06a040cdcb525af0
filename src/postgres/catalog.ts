/** Tables as Postgres describes them, joined with the config's rules; everything that cannot be synced is listed at once. */
import * as Effect from "effect/Effect"
import { type Audience, type Column, type ColumnRule, isThrough, type Reference, type Table } from "../model/table.ts"
import { kindOf, type Wire } from "../model/value.ts"
import { hasKeyRange } from "./key-types.ts"
import type { PostgresError, Session } from "./client.ts"

/** The rules of one table, as config and the built-in list give them. */
export type Wanted = Pick<
  Table,
  "name" | "audience" | "direction" | "priority" | "strategy" | "columnStrategies" | "exclude" | "uniqueRule" | "insert" | "system"
> & {
  readonly local?: string
}

export interface Catalog {
  readonly tables: ReadonlyArray<Table>
  /** One sentence each: the thing, the reason, the remedy. */
  readonly problems: ReadonlyArray<string>
  /** Columns whose updates may leave them out of the stream when unchanged, by table. */
  readonly toastable: ReadonlyMap<string, ReadonlySet<string>>
}

interface ColumnRow {
  readonly tbl: string
  readonly name: string
  readonly type: string
  readonly oid: string
  readonly not_null: boolean
  readonly generated: boolean
  readonly toastable: boolean
  readonly def: string | null
}

/** `"public.books"` -> `"books"`, `"library.books"` -> `"library_books"`. */
export const localName = (table: string): string => (table.startsWith("public.") ? table.slice("public.".length) : table.replace(".", "_"))

const ownAudienceColumns = (audience: Audience): ReadonlyArray<string> =>
  audience === "all" ? [] : isThrough(audience) ? Object.keys(audience.on) : [audience.column]

const LITERAL = /^(?:'(?:[^']|'')*'|-?\d+(?:\.\d+)?|true|false|\(-\d+(?:\.\d+)?\))(?:::[a-z0-9_ ."()[\],]+)?$/i

export const readCatalog = (session: Session, wanted: ReadonlyArray<Wanted>): Effect.Effect<Catalog, PostgresError> =>
  Effect.gen(function* () {
    // With an empty path, format_type qualifies every type that is not built in, so its text can be used in a cast.
    yield* session.execute(`SELECT set_config('search_path', '', true)`)
    const names = wanted.map((table) => table.name)
    const relations = yield* session.query<{ tbl: string; kind: string; persistence: string; identity: string; oid: string }>(
      `SELECT n.nspname || '.' || c.relname AS tbl, c.relkind::text AS kind, c.relpersistence::text AS persistence,
              c.relreplident::text AS identity, c.oid::text AS oid
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname || '.' || c.relname = ANY ($1)`,
      [names],
    )
    const columns = yield* session.query<ColumnRow>(
      `SELECT n.nspname || '.' || c.relname AS tbl, a.attname::text AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
              a.atttypid::text AS oid, a.attnotnull AS not_null, a.attgenerated <> '' AS generated, a.attstorage <> 'p' AS toastable,
              CASE WHEN a.attgenerated = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END AS def
         FROM pg_catalog.pg_attribute a
         JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped AND n.nspname || '.' || c.relname = ANY ($1)
        ORDER BY tbl, a.attnum`,
      [names],
    )
    const domains = yield* session.query<{ oid: string; name: string; base: string }>(
      `SELECT oid::text AS oid, typname::text AS name, typbasetype::text AS base FROM pg_catalog.pg_type`,
    )
    const indexes = yield* session.query<{ tbl: string; is_primary: boolean; cols: string }>(
      `SELECT n.nspname || '.' || c.relname AS tbl, i.indisprimary AS is_primary,
              (SELECT pg_catalog.json_agg(a.attname ORDER BY k.ord)::text FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k (att, ord)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.att WHERE k.ord <= i.indnkeyatts) AS cols
         FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
          AND n.nspname || '.' || c.relname = ANY ($1)
        ORDER BY i.indexrelid`,
      [names],
    )
    const references = yield* session.query<{ tbl: string; target: string; cols: string; target_cols: string }>(
      `SELECT n.nspname || '.' || c.relname AS tbl, tn.nspname || '.' || t.relname AS target,
              (SELECT pg_catalog.json_agg(a.attname ORDER BY k.ord)::text FROM pg_catalog.unnest(o.conkey) WITH ORDINALITY AS k (att, ord)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.att) AS cols,
              (SELECT pg_catalog.json_agg(a.attname ORDER BY k.ord)::text FROM pg_catalog.unnest(o.confkey) WITH ORDINALITY AS k (att, ord)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.att) AS target_cols
         FROM pg_catalog.pg_constraint o
         JOIN pg_catalog.pg_class c ON c.oid = o.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_class t ON t.oid = o.confrelid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
        WHERE o.contype = 'f' AND o.conparentid = 0 AND n.nspname || '.' || c.relname = ANY ($1)
        ORDER BY o.oid`,
      [names],
    )
    const constants = yield* readConstants(session, columns)

    const domainByOid = new Map(domains.map((row) => [row.oid, row]))
    const baseName = (oid: string): string => {
      let type = domainByOid.get(oid)
      while (type !== undefined && type.base !== "0") type = domainByOid.get(type.base)
      return type?.name ?? ""
    }
    const relationByName = new Map(relations.map((row) => [row.tbl, row]))
    const problems: Array<string> = []
    const tables: Array<Table> = []
    const toastable = new Map<string, Set<string>>()

    for (const rule of wanted) {
      const relation = relationByName.get(rule.name)
      if (relation === undefined) {
        problems.push(`table ${rule.name} does not exist; create it, or take it out of the config`)
        continue
      }
      if (relation.kind !== "r") {
        const what =
          relation.kind === "p" ? "a partitioned table" : relation.kind === "v" || relation.kind === "m" ? "a view" : "not an ordinary table"
        problems.push(`${rule.name} is ${what}; only ordinary tables can be synced`)
        continue
      }
      if (relation.persistence !== "p") {
        problems.push(`table ${rule.name} is unlogged or temporary, so its changes are not in the WAL; run ALTER TABLE ${rule.name} SET LOGGED`)
        continue
      }
      const mine = columns.filter((column) => column.tbl === rule.name)
      const unique = indexes
        .filter((index) => index.tbl === rule.name)
        .map((index) => ({ primary: index.is_primary, cols: JSON.parse(index.cols) as Array<string> }))
      const key = unique.find((index) => index.primary)?.cols
      if (key === undefined) {
        problems.push(
          `table ${rule.name} has no primary key, so its updates and deletes cannot be told apart; add one: ALTER TABLE ${rule.name} ADD PRIMARY KEY (…)`,
        )
        continue
      }
      if (relation.identity !== "d" && relation.identity !== "f") {
        problems.push(`table ${rule.name} has a replica identity that leaves out its key; run ALTER TABLE ${rule.name} REPLICA IDENTITY DEFAULT`)
      }
      const known = new Set(mine.map((column) => column.name))
      for (const column of ownAudienceColumns(rule.audience)) {
        if (!known.has(column)) problems.push(`audience column ${column} of table ${rule.name} does not exist; columns are ${[...known].join(", ")}`)
      }
      if (isThrough(rule.audience)) {
        const { through } = rule.audience
        const theirs = columns.flatMap((column) => (column.tbl === through ? [column.name] : []))
        for (const column of Object.values(rule.audience.on)) {
          if (theirs.length > 0 && !theirs.includes(column))
            problems.push(
              `the audience of table ${rule.name} names column ${column} of ${through}, which does not exist; columns are ${theirs.join(", ")}`,
            )
        }
      }
      for (const [column, strategy] of Object.entries(rule.columnStrategies)) {
        const found = mine.find((one) => one.name === column)
        if (found === undefined)
          problems.push(`column ${column} of table ${rule.name} has a strategy but does not exist; columns are ${[...known].join(", ")}`)
        else {
          const unfit = unfitRule(strategy, kindOf(baseName(found.oid)), found.type)
          if (unfit !== null) problems.push(`column ${column} of table ${rule.name} cannot have rule ${strategy}: ${unfit}`)
        }
      }
      for (const column of rule.exclude ?? []) {
        if (!known.has(column))
          problems.push(`column ${column} of table ${rule.name} is excluded from conflicts but does not exist; columns are ${[...known].join(", ")}`)
      }
      for (const column of key) {
        const kind = kindOf(baseName(mine.find((c) => c.name === column)?.oid ?? ""))
        if (kind === "float")
          problems.push(`key column ${column} of table ${rule.name} is floating-point, which cannot name a row exactly; use numeric, bigint or uuid`)
      }
      toastable.set(rule.name, new Set(mine.filter((column) => column.toastable).map((column) => column.name)))
      const table: Table = {
        ...rule,
        local: rule.local ?? localName(rule.name),
        columns: mine.map((column): Column => {
          const kind = kindOf(baseName(column.oid))
          const constant = constants.get(`${column.tbl}\0${column.name}`)
          return {
            name: column.name,
            kind,
            type: column.type,
            notNull: column.not_null,
            generated: column.generated,
            ...(constant === undefined ? {} : { default: constantToWire(kind, constant) }),
          }
        }),
        key,
        unique: unique.filter((index) => !index.primary).map((index) => index.cols),
        references: references
          .filter((row) => row.tbl === rule.name)
          .map((row): Reference => ({ columns: JSON.parse(row.cols), table: row.target, to: JSON.parse(row.target_cols) })),
      }
      tables.push(hasKeyRange(table) ? { ...table, keyRange: true } : table)
    }
    const byLocal = new Map<string, string>()
    for (const table of tables) {
      const other = byLocal.get(table.local)
      if (other !== undefined)
        problems.push(`tables ${other} and ${table.name} would both be called ${table.local} in the school's file; rename one of them`)
      byLocal.set(table.local, table.name)
    }
    return { tables, problems, toastable }
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

/** Defaults that are constants, evaluated by Postgres itself, by `table NUL column`. */
const readConstants = (session: Session, columns: ReadonlyArray<ColumnRow>): Effect.Effect<ReadonlyMap<string, string>, PostgresError> =>
  Effect.gen(function* () {
    const literal = columns.filter((column) => column.def !== null && LITERAL.test(column.def))
    if (literal.length === 0) return new Map()
    const [row] = yield* session.values(`SELECT ${literal.map((column) => `(${column.def})::text`).join(", ")}`)
    return new Map(literal.flatMap((column, i) => (row?.[i] == null ? [] : [[`${column.tbl}\0${column.name}`, row[i]] as const])))
  })
