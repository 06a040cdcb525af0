/** Tables as Postgres's catalog has them: relations, columns, types, unique indexes, foreign keys, defaults. */
import * as Effect from "effect/Effect"
import type { PostgresError, Session } from "./client.ts"

/** `tbl`: schema and name, `public.students`; so in all of them. */
interface RelationRow {
  readonly tbl: string
  readonly kind: string
  readonly persistence: string
  readonly identity: string
  readonly oid: string
  readonly filenode: string
  /** The role may use its schema, and read every column. */
  readonly reachable: boolean
  readonly readable: boolean
  readonly filtered: boolean
  readonly child: string | null
  readonly role: string
  readonly deferrable: string | null
  readonly written: string
  readonly facts: string
  readonly key_index: string
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

/** `base`: of a domain, `elem`: of an array, as oids; "0" = it is none. `spelling`: labels or parts by which its text may change; `parts`: the types of these, a JSON list of oids. */
interface TypeRow {
  readonly oid: string
  readonly name: string
  readonly base: string
  readonly elem: string
  readonly spelling: string | null
  readonly parts: string | null
}

/** Unique for whole rows and at once; `cols`: a JSON list. */
interface IndexRow {
  readonly tbl: string
  readonly is_primary: boolean
  readonly cols: string
}

interface ReferenceRow {
  readonly tbl: string
  readonly target: string
  readonly cols: string
  readonly target_cols: string
}

export interface CatalogRows {
  readonly relations: ReadonlyArray<RelationRow>
  readonly columns: ReadonlyArray<ColumnRow>
  readonly types: ReadonlyArray<TypeRow>
  readonly indexes: ReadonlyArray<IndexRow>
  readonly references: ReadonlyArray<ReferenceRow>
  /** Constant defaults by `table NUL column`. */
  readonly constants: ReadonlyMap<string, string>
}

const LITERAL = /^(?:ARRAY\[\]|'(?:[^']|'')*'|-?\d+(?:\.\d+)?|true|false|\(-\d+(?:\.\d+)?\))(?:::[a-z0-9_ ."()[\],]+)?$/i

export const readCatalogRows = (session: Session, names: ReadonlyArray<string>): Effect.Effect<CatalogRows, PostgresError> =>
  Effect.gen(function* () {
    // Under the hub's path, format_type qualifies every type that is not built in, so its text can be used in a cast.
    const relations = yield* session.query<RelationRow>(
      `SELECT n.nspname || '.' || c.relname AS tbl, c.relkind::text AS kind, c.relpersistence::text AS persistence,
              CASE WHEN c.relreplident = 'i' AND EXISTS (SELECT 1 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_index p ON p.indrelid = i.indrelid AND p.indisprimary
                     WHERE i.indrelid = c.oid AND i.indisreplident AND (i.indkey::int2[])[0:i.indnkeyatts - 1] @> (p.indkey::int2[])[0:p.indnkeyatts - 1])
                   THEN 'd' ELSE c.relreplident::text END AS identity, c.oid::text AS oid, c.relfilenode::text AS filenode, current_user::text AS role,
              pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS reachable, NOT EXISTS (
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
    const types = yield* session.query<TypeRow>(
      `SELECT t.oid::text AS oid, t.typname::text AS name, t.typbasetype::text AS base, CASE WHEN t.typcategory = 'A' THEN t.typelem::text ELSE '0' END AS elem,
              CASE WHEN t.typtype = 'e' THEN (SELECT pg_catalog.json_object_agg(e.oid, e.enumlabel ORDER BY e.oid)::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid)
                   WHEN t.typtype = 'c' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
                   THEN (SELECT pg_catalog.json_build_object('parts', pg_catalog.string_agg(a.attnum || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum))::text
                           FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
              END AS spelling,
              CASE WHEN t.typtype = 'c' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
                   THEN (SELECT pg_catalog.json_agg(a.atttypid::text)::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
              END AS parts
         FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace`,
    )
    const indexes = yield* session.query<IndexRow>(
      `SELECT n.nspname || '.' || c.relname AS tbl, i.indisprimary AS is_primary,
              (SELECT pg_catalog.json_agg(a.attname ORDER BY k.ord)::text FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k (att, ord)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.att WHERE k.ord <= i.indnkeyatts) AS cols
         FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
          AND n.nspname || '.' || c.relname = ANY ($1)
        ORDER BY i.indexrelid`,
      [names],
    )
    const references = yield* session.query<ReferenceRow>(
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
    return { relations, columns, types, indexes, references, constants }
  })

/** Defaults that are constants, evaluated by Postgres itself, by `table NUL column`. */
const readConstants = (session: Session, columns: ReadonlyArray<ColumnRow>): Effect.Effect<ReadonlyMap<string, string>, PostgresError> =>
  Effect.gen(function* () {
    const literal = columns.filter((column) => column.def !== null && LITERAL.test(column.def))
    if (literal.length === 0) return new Map()
    const [row] = yield* session.values(`SELECT ${literal.map((column) => `(${column.def})::text`).join(", ")}`)
    return new Map(literal.flatMap((column, i) => (row?.[i] == null ? [] : [[`${column.tbl}\0${column.name}`, row[i]] as const])))
  })

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
