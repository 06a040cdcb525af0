/** Tables as Postgres describes them, joined with the config's rules; everything that cannot be synced is listed at once. */
import * as Effect from "effect/Effect"
import { type Audience, type Column, type ColumnRule, isReservedName, isThrough, type Reference, sameName, type Table } from "../model/table.ts"
import { kindOf, type Wire } from "../model/value.ts"
import { hasKeyRange } from "./key-types.ts"
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

interface ColumnRow {
  readonly tbl: string
  readonly name: string
  readonly type: string
  readonly oid: string
  readonly not_null: boolean
  readonly generated: boolean
  readonly toastable: boolean
  readonly def: string | null
  readonly identity: boolean
  readonly number: number
  readonly missing: string | null
  readonly expression: string
}

/** `"public.books"` -> `"books"`, `"library.books"` -> `"library_books"`. */
export const localName = (table: string): string => (table.startsWith("public.") ? table.slice("public.".length) : table.replace(".", "_"))

const ownAudienceColumns = (audience: Audience): ReadonlyArray<string> =>
  audience === "all" ? [] : isThrough(audience) ? Object.keys(audience.on) : [audience.column]

const LITERAL = /^(?:ARRAY\[\]|'(?:[^']|'')*'|-?\d+(?:\.\d+)?|true|false|\(-\d+(?:\.\d+)?\))(?:::[a-z0-9_ ."()[\],]+)?$/i

export const readCatalog = (session: Session, wanted: ReadonlyArray<Wanted>): Effect.Effect<Catalog, PostgresError> =>
  Effect.gen(function* () {
    // With an empty path, format_type qualifies every type that is not built in, so its text can be used in a cast.
    yield* session.execute(`SELECT set_config('search_path', '', true)`)
    const names = wanted.map((table) => table.name)
    const relations = yield* session.query<{
      tbl: string
      kind: string
      persistence: string
      identity: string
      oid: string
      filenode: string
      readable: boolean
      filtered: boolean
      child: string | null
      role: string
      deferrable: string | null
      written: string
      facts: string
      key_index: string
    }>(
      `SELECT n.nspname || '.' || c.relname AS tbl, c.relkind::text AS kind, c.relpersistence::text AS persistence,
              CASE WHEN c.relreplident = 'i' AND EXISTS (SELECT 1 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_index p ON p.indrelid = i.indrelid AND p.indisprimary
                     WHERE i.indrelid = c.oid AND i.indisreplident AND (i.indkey::int2[])[0:i.indnkeyatts - 1] @> (p.indkey::int2[])[0:p.indnkeyatts - 1])
                   THEN 'd' ELSE c.relreplident::text END AS identity, c.oid::text AS oid, c.relfilenode::text AS filenode, current_user::text AS role,
              pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND NOT EXISTS (
                SELECT 1 FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                   AND NOT pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')) AS readable,
              pg_catalog.row_security_active(c.oid) AS filtered,
              (SELECT pg_catalog.min(i.inhrelid::pg_catalog.regclass::text) FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid) AS child,
              (SELECT pg_catalog.format('DROP CONSTRAINT %I, ADD %s', o.conname, pg_catalog.split_part(pg_catalog.pg_get_constraintdef(o.oid), ' DEFERRABLE', 1))
                 FROM pg_catalog.pg_constraint o WHERE o.conrelid = c.oid AND o.contype = 'p' AND o.condeferrable) AS deferrable,
              c.xmin::text || '.' || n.xmin::text AS written,
              pg_catalog.md5((pg_catalog.to_jsonb(c) - '{relpages,reltuples,relallvisible,relallfrozen,relfrozenxid,relminmxid}'::text[])::text || pg_catalog.to_jsonb(n)::text) AS facts,
              coalesce((SELECT i.indexrelid::text FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary), '') AS key_index
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname || '.' || c.relname = ANY ($1)`,
      [names],
    )
    const columns = yield* session.query<ColumnRow>(
      `SELECT n.nspname || '.' || c.relname AS tbl, a.attname::text AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
              a.atttypid::text AS oid, a.attnotnull AS not_null, a.attgenerated <> '' AS generated, a.attstorage <> 'p' AS toastable,
              CASE WHEN a.attgenerated = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END AS def, a.attidentity <> '' AS identity,
              a.attnum::int AS number,
              CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END AS missing,
              CASE WHEN a.attgenerated <> '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) ELSE '' END AS expression
         FROM pg_catalog.pg_attribute a
         JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped AND n.nspname || '.' || c.relname = ANY ($1)
        ORDER BY tbl, a.attnum`,
      [names],
    )
    const domains = yield* session.query<{ oid: string; name: string; base: string; elem: string; spelling: string | null }>(
      `SELECT t.oid::text AS oid, t.typname::text AS name, t.typbasetype::text AS base, CASE WHEN t.typcategory = 'A' THEN t.typelem::text ELSE '0' END AS elem,
              CASE WHEN t.typtype = 'e' THEN (SELECT pg_catalog.json_object_agg(e.oid, e.enumlabel ORDER BY e.oid)::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid)
                   WHEN t.typtype = 'c' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
                   THEN (SELECT pg_catalog.json_build_object('parts', pg_catalog.string_agg(a.attnum || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum))::text
                           FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
              END AS spelling
         FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace`,
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
    const spellingOf = (oid: string): Readonly<Record<string, string>> => {
      let type = domainByOid.get(oid)
      while (type !== undefined && (type.base !== "0" || type.elem !== "0")) type = domainByOid.get(type.base !== "0" ? type.base : type.elem)
      return type?.spelling == null ? {} : (JSON.parse(type.spelling) as Record<string, string>)
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
      if (rule.direction !== "up" && !relation.readable) {
        const text = `the hub's role may not read all columns of table ${name}; a DBA can allow it: GRANT SELECT ON ${spelledTable(name)} TO ${spelled(relation.role)}`
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

/** Defaults that are constants, evaluated by Postgres itself, by `table NUL column`. */
const readConstants = (session: Session, columns: ReadonlyArray<ColumnRow>): Effect.Effect<ReadonlyMap<string, string>, PostgresError> =>
  Effect.gen(function* () {
    const literal = columns.filter((column) => column.def !== null && LITERAL.test(column.def))
    if (literal.length === 0) return new Map()
    const [row] = yield* session.values(`SELECT ${literal.map((column) => `(${column.def})::text`).join(", ")}`)
    return new Map(literal.flatMap((column, i) => (row?.[i] == null ? [] : [[`${column.tbl}\0${column.name}`, row[i]] as const])))
  })

/** All that cannot be synced, of single tables and of them together. */
export const problemsOf = (catalog: Catalog): ReadonlyArray<string> => [
  ...catalog.found.flatMap(({ problems }) => problems.map(({ text }) => text)),
  ...catalog.problems,
]

/** Where these relations stand now; those that are gone are left out. */
export const readNames = (session: Session, oids: ReadonlyArray<string>): Effect.Effect<ReadonlyMap<string, string>, PostgresError> =>
  Effect.map(
    session.query<{ oid: string; tbl: string }>(
      `SELECT c.oid::text AS oid, n.nspname || '.' || c.relname AS tbl
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid::text = ANY ($1::text[])`,
      [oids],
    ),
    (rows) => new Map(rows.map(({ oid, tbl }) => [oid, tbl])),
  )
