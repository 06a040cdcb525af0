/** A server whose messages are in another language: what is told of a refusal, and what is done about it, is the same. */
import { execFileSync } from "node:child_process"
import { chmodSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import { afterAll, beforeAll, expect, test } from "vitest"
import { type Cluster, startCluster } from "../../scripts/cluster.ts"
import { asOffice, openPool, type PostgresError, type PostgresPool } from "../../src/postgres/client.ts"
import { remedyOf } from "../../src/postgres/remedy.ts"
import type { Shape } from "../../src/up/shape.ts"
import { refusalOf } from "../../src/up/write.ts"
import { run } from "../support/postgres.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-language-"))
const speaksGerman = (() => {
  try {
    execFileSync("localedef", ["-i", "de_DE", "-f", "UTF-8", join(folder, "de_DE.UTF-8")], { stdio: "ignore" })
    chmodSync(folder, 0o755)
    return true
  } catch {
    return false
  }
})()

let cluster: Cluster
beforeAll(async () => {
  if (!speaksGerman) return
  process.env["LOCPATH"] = folder
  cluster = await startCluster({ wal2json: false, fsync: false, settings: { lc_messages: "'de_DE.UTF-8'" } })
  delete process.env["LOCPATH"]
  await run(
    cluster.url(),
    `CREATE ROLE pusher LOGIN; CREATE TABLE public.log (id int);
     CREATE TABLE marks (id int); CREATE TABLE secured (id int); CREATE TABLE audited (id int);
     ALTER TABLE secured ENABLE ROW LEVEL SECURITY; CREATE POLICY small ON secured USING (id < 10);
     CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log VALUES (NEW.id); RETURN NEW; END $$;
     CREATE TRIGGER n BEFORE INSERT ON audited FOR EACH ROW EXECUTE FUNCTION note();
     GRANT ALL ON secured, audited TO pusher`,
  )
  await run(cluster.url(), "CREATE DATABASE closed ALLOW_CONNECTIONS false")
}, 60_000)
afterAll(async () => {
  await cluster?.remove()
  rmSync(folder, { recursive: true, force: true })
})

const withPool = <A, E>(use: (pg: PostgresPool) => Effect.Effect<A, E>, user = "postgres", database = "postgres"): Promise<A> =>
  Effect.runPromise(
    Effect.scoped(Effect.flatMap(openPool(Object.assign(new URL(cluster.url(database)), { username: user }).href, { name: "test", max: 1 }), use)),
  )
const refused = (sql: string, user?: string, database?: string) =>
  withPool((pg) => Effect.flip(pg.tx((session) => asOffice(session, session.execute(sql)))), user, database)
const shape = (table: string) => ({ name: `public.${table}`, role: "pusher" }) as Shape

test.skipIf(!speaksGerman)("a missing right, of the table or of what a trigger uses, and row security are told apart", async () => {
  const denied = await refused("INSERT INTO public.marks VALUES (1)", "pusher")
  expect(refusalOf(denied, shape("marks"))).toMatchObject({ reason: "permission", detail: expect.stringContaining("GRANT SELECT, INSERT") })
  const inside = await refused("INSERT INTO public.audited VALUES (1)", "pusher")
  expect(refusalOf(inside, shape("audited"))).toMatchObject({ reason: "permission", detail: expect.stringContaining("SECURITY DEFINER") })
  const hidden = await refused("INSERT INTO public.secured VALUES (20)", "pusher")
  expect(refusalOf(hidden, shape("secured"))).toMatchObject({ reason: "row_security", detail: expect.stringContaining("BYPASSRLS") })
})

test.skipIf(!speaksGerman)("a transaction that meets a plan from before a DDL is done once more", async () => {
  let attempts = 0
  const rows = await withPool((pg) =>
    pg.tx((session) =>
      Effect.gen(function* () {
        if (++attempts > 1) return yield* session.query("SELECT count(*)::int AS n FROM public.log")
        yield* session.execute("PREPARE p AS SELECT * FROM public.log")
        yield* session.execute("ALTER TABLE public.log ADD COLUMN more int")
        return yield* session.query("EXECUTE p")
      }),
    ),
  )
  expect([attempts, rows]).toEqual([2, [{ n: 0 }]])
})

test.skipIf(!speaksGerman)("a limit of the role and a database that is closed are told with their remedies", async () => {
  const remedy = ({ sqlstate, message, routine }: PostgresError) => remedyOf(sqlstate, message, routine)
  expect(remedy(await refused("SELECT 1", "postgres", "closed"))).toContain("ALLOW_CONNECTIONS true")
  await run(cluster.url(), "ALTER ROLE pusher CONNECTION LIMIT 0")
  expect(remedy(await refused("SELECT 1", "pusher"))).toContain("CONNECTION LIMIT -1")
})
