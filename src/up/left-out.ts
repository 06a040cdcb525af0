/** Rows that Postgres did not write, though it refused nothing: which rule, trigger or row security of head office it was. */
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import { ident, PostgresError, qualified, type Session } from "../postgres/client.ts"
import type { Refusal } from "./authorise.ts"
import type { Shape } from "./shape.ts"

export const bypass = (shape: Shape): string =>
  `a DBA can change the policy, or let the hub's role write all rows: ALTER ROLE ${ident(shape.role)} BYPASSRLS`

export const hidden = (shape: Shape): Refusal => ({
  reason: "row_security",
  detail: `row security of ${shape.name} hides the row from the hub's role; ${bypass(shape)}`,
})

/** Under which a row that Postgres did not write is told: as if a trigger had refused it, and two codes of our own. */
const LEFT_OUT = "P0001"
export const RULE = "SB001"
export const ROW_SECURITY = "SB002"
export const isLeftOut = ({ sqlstate }: PostgresError): boolean => sqlstate === LEFT_OUT || sqlstate === RULE || sqlstate === ROW_SECURITY

/** `pg_rewrite.ev_type`, and the bits of an event in `pg_trigger.tgtype`. */
const EVENTS = {
  insert: { rule: "3", trigger: 4 },
  update: { rule: "2", trigger: 16 },
  delete: { rule: "4", trigger: 8 },
}

/** What in Postgres may leave rows out without a word. */
const WHO_LEAVES_OUT = `SELECT c.relrowsecurity AND pg_catalog.row_security_active(c.oid) AS secured,
    (SELECT json_agg(r.rulename ORDER BY r.rulename)::text FROM pg_catalog.pg_rewrite r
      WHERE r.ev_class = c.oid AND r.ev_type::text = $2 AND r.is_instead AND r.ev_enabled <> 'D') AS rules,
    (SELECT json_agg(t.tgname ORDER BY t.tgname)::text FROM pg_catalog.pg_trigger t
      WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & 3 = 3 AND t.tgtype & $3::int <> 0) AS triggers
  FROM pg_catalog.pg_class c WHERE c.oid = $1::regclass`

export const leftOut = (
  session: Session,
  { table, shape, kind }: { readonly table: Table; readonly shape: Shape; readonly kind: keyof typeof EVENTS },
): Effect.Effect<PostgresError, PostgresError> =>
  Effect.map(
    session.query<{ secured: boolean; rules: string | null; triggers: string | null }>(WHO_LEAVES_OUT, [
      qualified(table.name),
      EVENTS[kind].rule,
      EVENTS[kind].trigger,
    ]),
    ([who]) => {
      const names = (list: string | null | undefined) => (list == null ? [] : (JSON.parse(list) as ReadonlyArray<string>)).map((name) => ident(name))
      const [rules, triggers] = [names(who?.rules), names(who?.triggers)]
      const rule = `rule ${rules.join(", ")} of ${table.name} in Postgres left the row out (DO INSTEAD); where schools may do this: DROP RULE ${rules[0]} ON ${qualified(table.name)}`
      const [sqlstate, message] =
        rules.length > 0
          ? [RULE, rule]
          : triggers.length === 0 && who?.secured === true
            ? [ROW_SECURITY, hidden(shape).detail]
            : [LEFT_OUT, `${triggers.length > 0 ? `trigger ${triggers.join(", ")}` : "a trigger"} in Postgres left the row out`]
      return new PostgresError({ sqlstate, message, detail: "", constraint: "", table: table.name, column: "", sql: "" })
    },
  )
