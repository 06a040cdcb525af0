import { afterAll, expect, test } from "vitest"
import { createDatabase, type Database, run } from "./postgres.ts"

const made: Array<Database> = []
afterAll(() => Promise.all(made.map((database) => database.drop())))

test("a database decodes logically with wal2json and stamps commits", async () => {
  const db = await createDatabase()
  made.push(db)
  await run(db.url, "CREATE TABLE pupil (id int PRIMARY KEY)")
  await run(db.url, "SELECT pg_create_logical_replication_slot('s_' || current_database(), 'wal2json')")
  await run(db.url, "INSERT INTO pupil VALUES (1)")
  const changes = await run(db.url, "SELECT data FROM pg_logical_slot_peek_changes('s_' || current_database(), null, null, 'format-version', '2')")
  expect(changes.map((row) => JSON.parse(String(row.data)).action)).toEqual(["B", "I", "C"])
  const [stamp] = await run(db.url, "SELECT pg_xact_commit_timestamp(xmin) IS NOT NULL AS known FROM pupil")
  expect(stamp?.known).toBe(true)
})

test("a copy of a template has its tables, and dropping it takes its slots along", async () => {
  const template = await createDatabase()
  made.push(template)
  await run(template.url, "CREATE TABLE pupil (id int PRIMARY KEY)")
  const copy = await createDatabase(template.name)
  await run(copy.url, "SELECT pg_create_logical_replication_slot('s_' || current_database(), 'pgoutput')")
  expect(await run(copy.url, "SELECT * FROM pupil")).toEqual([])
  await copy.drop()
  expect(await run(template.url, `SELECT 1 FROM pg_database WHERE datname = '${copy.name}'`)).toEqual([])
})
