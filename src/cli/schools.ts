/** `schools …`: who may sync. Written to Postgres; the hub hears of it through the stream, within seconds. */
import * as Effect from "effect/Effect"
import { newKey } from "../link/keys.ts"
import type { PostgresPool, Session } from "../postgres/client.ts"
import { migrateHub } from "../postgres/migrate.ts"
import { confirm } from "./confirm.ts"
import { withPostgres } from "./database.ts"
import type { Io } from "./io.ts"
import { CommandFailed, EXIT, type Input, usage } from "./options.ts"
import { clean, countText, table } from "./text.ts"

/** Two, so that a school can change from one to the other without a gap. */
const ACTIVE_KEYS = 2

const addKey = (session: Session, school: string) =>
  Effect.gen(function* () {
    const key = newKey()
    yield* session.execute(`INSERT INTO schoolbus.school_keys (id, school, hash) VALUES ($1, $2, $3)`, [key.id, school, key.hash])
    return key
  })

/** Locks the school's row, so that two commands on one school wait for each other. */
const existing = (session: Session, school: string) =>
  Effect.gen(function* () {
    const [row] = yield* session.query<{ name: string; revoked: boolean }>(
      `SELECT name, revoked_at IS NOT NULL AS revoked FROM schoolbus.schools WHERE id = $1 FOR UPDATE`,
      [school],
    )
    if (row === undefined)
      return yield* Effect.fail(new CommandFailed(EXIT.failed, "no_school", `no school ${school} is enrolled`, "schoolbus schools list"))
    return row
  })

const idOf = (input: Input): string => {
  const id = input.args["id"] ?? ""
  if (id === "" || id.trim() !== id || id.length > 200 || clean(id) !== id)
    throw usage("a school's id is 1 to 200 characters, without blanks around it or control characters")
  return id
}

const printKey = (io: Io, input: Input, school: string, key: { readonly text: string }): number => {
  if (input.flag("json")) io.out(`${JSON.stringify({ id: school, key: key.text })}\n`)
  else {
    io.out(`${key.text}\n`)
    io.err(
      `This is the key of school ${school}. It is shown once and kept nowhere.\nAt the school: schoolbus school --hub URL --key-file FILE --data-dir DIR\n`,
    )
  }
  return EXIT.ok
}

export const add = async (input: Input, io: Io): Promise<number> => {
  const id = idOf(input)
  const name = input.textOr("name", id)
  const key = await withPostgres(input, (pg) =>
    Effect.gen(function* () {
      yield* migrateHub(pg)
      return yield* pg.tx((session) =>
        Effect.gen(function* () {
          const added = yield* session.execute(`INSERT INTO schoolbus.schools (id, name) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`, [id, name])
          if (added === 0) {
            return yield* Effect.fail(
              new CommandFailed(
                EXIT.failed,
                "school_exists",
                `school ${id} is enrolled already`,
                `for a new key: schoolbus schools rotate-key ${id}`,
              ),
            )
          }
          return yield* addKey(session, id)
        }),
      )
    }),
  )
  return printKey(io, input, id, key)
}

interface SchoolRow {
  readonly id: string
  readonly name: string
  readonly state: string
  readonly keys: number
  readonly pending: string | null
  readonly seenAt: string | null
  readonly createdAt: string
}

/** `schoolbus` may not be there yet: then no school is. */
const listSchools = (pg: PostgresPool) =>
  Effect.gen(function* () {
    const [known] = yield* pg.query<{ present: boolean }>(`SELECT to_regclass('schoolbus.school_health') IS NOT NULL AS present`)
    if (known?.present !== true) return []
    return yield* pg.query<SchoolRow>(
      `SELECT h.school AS id, h.name, h.state, h.pending::text AS pending,
              to_char(h.seen_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS "seenAt", to_char(s.created_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS "createdAt",
              (SELECT count(*)::int FROM schoolbus.school_keys k WHERE k.school = h.school AND k.revoked_at IS NULL) AS keys
         FROM schoolbus.school_health h JOIN schoolbus.schools s ON s.id = h.school ORDER BY h.school`,
    )
  })

export const list = async (input: Input, io: Io): Promise<number> => {
  const rows = await withPostgres(input, listSchools)
  if (input.flag("json")) {
    const items = rows.map((row) => ({ ...row, pending: row.pending === null ? null : Number(row.pending) }))
    io.out(`${JSON.stringify({ schemaVersion: 1, asOf: new Date().toISOString(), items })}\n`)
  } else if (rows.length === 0) io.out("No school is enrolled yet: schoolbus schools add ID --name NAME\n")
  else {
    io.out(
      table(
        io.look,
        [
          { title: "School" },
          { title: "Name" },
          { title: "State" },
          { title: "Keys", right: true },
          { title: "To send", right: true },
          { title: "Last seen" },
        ],
        rows.map((row) => [
          clean(row.id),
          clean(row.name),
          row.state,
          String(row.keys),
          row.pending === null ? "-" : countText(Number(row.pending)),
          row.seenAt ?? "never",
        ]),
      ),
    )
  }
  return EXIT.ok
}

const change =
  (sql: string, done: string) =>
  async (input: Input, io: Io): Promise<number> => {
    const id = idOf(input)
    await withPostgres(input, (pg) =>
      pg.tx((session) =>
        Effect.gen(function* () {
          const { revoked } = yield* existing(session, id)
          if (revoked)
            return yield* Effect.fail(
              new CommandFailed(
                EXIT.failed,
                "revoked",
                `school ${id} was revoked`,
                "schoolbus schools rotate-key gives it a new key and lets it in again",
              ),
            )
          yield* session.execute(sql, [id])
        }),
      ),
    )
    io.out(input.flag("json") ? `${JSON.stringify({ id, done })}\n` : `School ${clean(id)} is ${done}.\n`)
    return EXIT.ok
  }

export const pause = change(`UPDATE schoolbus.schools SET paused = true WHERE id = $1`, "paused")
export const resume = change(`UPDATE schoolbus.schools SET paused = false WHERE id = $1`, "resumed")

export const rotateKey = async (input: Input, io: Io): Promise<number> => {
  const id = idOf(input)
  const keep = input.flag("now") ? 0 : ACTIVE_KEYS - 1
  const key = await withPostgres(input, (pg) =>
    pg.tx((session) =>
      Effect.gen(function* () {
        yield* existing(session, id)
        yield* session.execute(
          `UPDATE schoolbus.school_keys SET revoked_at = now()
            WHERE school = $1 AND revoked_at IS NULL
              AND id NOT IN (SELECT id FROM schoolbus.school_keys WHERE school = $1 AND revoked_at IS NULL ORDER BY created_at DESC, id LIMIT $2::int)`,
          [id, keep],
        )
        yield* session.execute(`UPDATE schoolbus.schools SET revoked_at = NULL WHERE id = $1 AND revoked_at IS NOT NULL`, [id])
        return yield* addKey(session, id)
      }),
    ),
  )
  if (keep > 0 && !input.flag("json")) io.err("The key before this one works until the next rotation; --now ends it at once.\n")
  return printKey(io, input, id, key)
}

export const revoke = async (input: Input, io: Io): Promise<number> => {
  const id = idOf(input)
  await confirm(input, io, `school ${id} will be cut off at once`, id)
  await withPostgres(input, (pg) =>
    pg.tx((session) =>
      Effect.gen(function* () {
        yield* existing(session, id)
        yield* session.execute(`UPDATE schoolbus.school_keys SET revoked_at = now() WHERE school = $1 AND revoked_at IS NULL`, [id])
        yield* session.execute(`UPDATE schoolbus.schools SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL`, [id])
      }),
    ),
  )
  io.out(input.flag("json") ? `${JSON.stringify({ id, done: "revoked" })}\n` : `School ${clean(id)} is revoked; its keys no longer work.\n`)
  return EXIT.ok
}
