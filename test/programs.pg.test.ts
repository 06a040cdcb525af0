/** SQL as mappers, migration tools and hand-made programs of a school run it, against a head office with tables of every shape. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import Database from "libsql"
import { afterAll, beforeAll, expect, it } from "vitest"
import type { SchoolSnapshot } from "../src/status/snapshot.ts"
import { type HubLink, openHubLink } from "./support/hub-link.ts"
import { type Service, startSchool } from "./support/processes.ts"
import { killAll } from "./support/run.ts"
import { until } from "./support/until.ts"
import { makeWorld, type World } from "./support/world.ts"

const folder = mkdtempSync(join(tmpdir(), "schoolbus-programs-"))
const dir = join(folder, "school")
let world: World
let hub: HubLink
let key = ""

beforeAll(async () => {
  world = await makeWorld(
    `CREATE SCHEMA library;
     CREATE TABLE authors (id uuid PRIMARY KEY, campus text NOT NULL, handle text NOT NULL UNIQUE, email text, fame int NOT NULL DEFAULT 0);
     CREATE UNIQUE INDEX authors_email ON authors (lower(email)) WHERE email IS NOT NULL;
     CREATE TABLE library.books (isbn varchar(13), copy smallint, campus text NOT NULL, "Title" text NOT NULL, price numeric(8,2) NOT NULL DEFAULT 1.50,
       gross numeric GENERATED ALWAYS AS (price * 1.18) STORED, tags text[] NOT NULL DEFAULT '{}', author uuid REFERENCES authors (id) ON DELETE SET NULL, PRIMARY KEY (isbn, copy));
     CREATE TABLE loans (id bigint PRIMARY KEY, campus text NOT NULL, isbn varchar(13), copy smallint, due date, "returned?" boolean NOT NULL DEFAULT false, note jsonb,
       FOREIGN KEY (isbn, copy) REFERENCES library.books (isbn, copy) ON UPDATE CASCADE ON DELETE CASCADE);
     CREATE UNIQUE INDEX loans_open ON loans (isbn, copy) WHERE NOT "returned?";
     CREATE TABLE visits (id uuid PRIMARY KEY, campus text, at timestamptz, "order" int);
     CREATE TABLE members (id uuid PRIMARY KEY, name text NOT NULL);
     CREATE TABLE memberships (campus text, member uuid REFERENCES members (id) ON UPDATE CASCADE, PRIMARY KEY (campus, member));`,
    {
      tables: {
        authors: { audience: { column: "campus" }, strategy: "school_wins" },
        "library.books": { audience: { column: "campus" }, strategy: "school_wins" },
        loans: { audience: { column: "campus" }, strategy: "school_wins" },
        visits: { audience: { column: "campus" }, direction: "up", strategy: "school_wins" },
        members: { audience: { through: "memberships", on: { id: "member" } }, strategy: "school_wins" },
        memberships: { audience: { column: "campus" }, strategy: "school_wins" },
      },
    },
    ["k"],
  )
  hub = await openHubLink(world)
  key = (await hub.key("k")).text
  for (let i = 1; i <= 5; i++) {
    await world.sql`INSERT INTO authors VALUES (${uuid(i)}, 'k', ${`handle${i}`}, ${`a${i}@x.org`}, ${i})`
    await world.sql`INSERT INTO library.books (isbn, copy, campus, "Title", author) VALUES (${`978-${i}`}, 1, 'k', ${`Book ${i}`}, ${uuid(i)})`
  }
  node = await startSchool(dir, hub.url, key)
  await until("the first copy", async () => (await node.status()).state === "up_to_date")
})
afterAll(async () => {
  await killAll()
  await hub?.stop()
  await world?.stop()
  rmSync(folder, { recursive: true, force: true })
})
let node: Service<SchoolSnapshot>
const uuid = (n: number): string => `00000000-0000-4000-8000-${String(n).padStart(12, "0")}`

const script = (sql: string): void => {
  const db = new Database(join(dir, "school.db"), { timeout: 10_000 })
  try {
    db.exec(sql)
  } finally {
    db.close()
  }
}
const query = (sql: string): ReadonlyArray<Record<string, unknown>> => {
  const db = new Database(join(dir, "school.db"), { timeout: 10_000 })
  try {
    return db.prepare(sql).all() as ReadonlyArray<Record<string, unknown>>
  } finally {
    db.close()
  }
}

const SIDES: Readonly<Record<string, readonly [local: string, office: string]>> = {
  authors: [
    "SELECT id, campus, handle, email, fame FROM authors ORDER BY id",
    "SELECT id::text, campus, handle, email, fame FROM authors ORDER BY id",
  ],
  books: [
    `SELECT isbn, copy, campus, "Title", price, gross, tags, author FROM library_books ORDER BY isbn, copy`,
    `SELECT isbn, copy, campus, "Title", price::text, gross::text, tags::text, author::text FROM library.books ORDER BY isbn, copy`,
  ],
  loans: [
    `SELECT CAST(id AS TEXT) AS id, campus, isbn, copy, due, "returned?", note FROM loans ORDER BY id`,
    `SELECT id::text, campus, isbn, copy, due::text, "returned?"::int, note::text FROM loans ORDER BY id`,
  ],
  visits: [`SELECT id, campus, at, "order" FROM visits ORDER BY id`, `SELECT id::text, campus, at::text, "order" FROM visits ORDER BY id`],
  members: ["SELECT id, name FROM members ORDER BY id", "SELECT id::text, name FROM members ORDER BY id"],
  memberships: ["SELECT campus, member FROM memberships ORDER BY member", "SELECT campus, member::text FROM memberships ORDER BY member"],
}
/** Both sides hold the same, nothing waits, nothing was refused. */
const agree = async () => {
  let seen = ""
  await until(
    () => `both sides to agree: ${seen}\n${node.log().slice(-800)}`,
    async () => {
      for (const [name, [local, office]] of Object.entries(SIDES)) {
        const [here, there] = [JSON.stringify(query(local)), JSON.stringify([...(await world.sql.unsafe(office))])]
        seen = `${name}\n here ${here}\nthere ${there}`
        if (here !== there) return false
      }
      const refused = await world.sql`SELECT table_name, row_key, reason, detail FROM schoolbus.quarantine WHERE status = 'open'`
      seen = `nothing waits ${JSON.stringify([...refused])} ${JSON.stringify(await node.status())}`
      return refused.length === 0 && (await node.status()).state === "up_to_date"
    },
    20_000,
  )
}

const steps: ReadonlyArray<readonly [what: string, sql: string]> = [
  [
    "RETURNING, UPDATE FROM, common table expressions",
    `INSERT INTO authors (id, campus, handle) VALUES ('${uuid(10)}', 'k', 'ten') RETURNING id, fame;
     UPDATE library_books SET price = '9.99', "Title" = a.handle FROM authors a WHERE a.id = library_books.author AND a.fame > 3 RETURNING isbn;
     WITH w AS (SELECT id FROM authors WHERE fame = 2) UPDATE authors SET fame = fame + 20 WHERE id IN w;
     WITH RECURSIVE n (i) AS (VALUES (2) UNION ALL SELECT i + 1 FROM n WHERE i < 4) INSERT INTO library_books (isbn, copy, campus, "Title") SELECT '978-1', i, 'k', 'Copy ' || i FROM n;
     DELETE FROM library_books WHERE isbn = '978-1' AND copy = 4 RETURNING *`,
  ],
  [
    "upserts on the key, on another unique column, and on both",
    `INSERT INTO authors (id, campus, handle, fame) VALUES ('${uuid(11)}', 'k', 'handle1', 77) ON CONFLICT (handle) DO UPDATE SET fame = excluded.fame, email = 'up@x.org';
     INSERT INTO authors (id, campus, handle) VALUES ('${uuid(2)}', 'k', 'renamed2') ON CONFLICT (id) DO UPDATE SET handle = excluded.handle;
     INSERT INTO authors (id, campus, handle) VALUES ('${uuid(12)}', 'k', 'handle3') ON CONFLICT DO NOTHING;
     INSERT OR IGNORE INTO authors (id, campus, handle) VALUES ('${uuid(12)}', 'k', 'twelve'), ('${uuid(12)}', 'k', 'twelve again');
     INSERT INTO authors (id, campus, handle) VALUES ('${uuid(4)}', 'k', 'x') ON CONFLICT (id) DO UPDATE SET handle = 'four' ON CONFLICT (handle) DO NOTHING`,
  ],
  [
    "REPLACE through the key and through another unique column, with what referred to the displaced row",
    `PRAGMA foreign_keys = ON; REPLACE INTO authors (id, campus, handle, fame) VALUES ('${uuid(1)}', 'k', 'replaced1', 5);
     PRAGMA foreign_keys = OFF; UPDATE library_books SET author = NULL WHERE author = '${uuid(3)}';
     REPLACE INTO authors (id, campus, handle) VALUES ('${uuid(13)}', 'k', 'handle3'); UPDATE OR REPLACE authors SET handle = 'handle5' WHERE id = '${uuid(10)}'`,
  ],
  [
    "savepoints, rolled back and released, and a transaction that is given up",
    `INSERT INTO members (id, name) VALUES ('${uuid(52)}', 'Zuri'), ('${uuid(53)}', 'Bilal'); INSERT INTO memberships VALUES ('k', '${uuid(52)}'), ('k', '${uuid(53)}');
     BEGIN; INSERT INTO visits (id, campus, "order") VALUES ('${uuid(20)}', 'k', 1); SAVEPOINT a; UPDATE authors SET fame = -1; SAVEPOINT b; DELETE FROM authors;
     ROLLBACK TO a; UPDATE authors SET fame = fame + 1 WHERE handle = 'ten'; RELEASE a; COMMIT;
     BEGIN; DELETE FROM library_books; ROLLBACK; SAVEPOINT outer; INSERT INTO visits (id, campus, "order", at) VALUES ('${uuid(21)}', 'k', 2, '2026-01-01 08:00:00+00'); RELEASE outer`,
  ],
  [
    "keys that change, with children that follow",
    `PRAGMA foreign_keys = OFF;
     INSERT INTO loans (campus, isbn, copy, due, note) VALUES ('k', '978-2', 1, '2026-02-01', '{"a": 1}'), ('k', '978-4', 1, NULL, NULL);
     UPDATE library_books SET isbn = '979-2' WHERE isbn = '978-2'; UPDATE loans SET isbn = '979-2' WHERE isbn = '978-2';
     UPDATE library_books SET copy = copy + 10 WHERE isbn = '978-1'`,
  ],
  [
    "a partial unique index: a book lent, given back and lent again",
    `UPDATE loans SET "returned?" = 1 WHERE isbn = '978-4'; INSERT INTO loans (campus, isbn, copy) VALUES ('k', '978-4', 1);
     CREATE UNIQUE INDEX IF NOT EXISTS own_open ON loans (isbn, copy) WHERE NOT "returned?"; UPDATE loans SET "returned?" = 1 WHERE isbn = '978-4';
     INSERT OR REPLACE INTO loans (id, campus, isbn, copy) SELECT max(id) + 1, 'k', '978-4', 1 FROM loans; INSERT OR REPLACE INTO loans (id, campus, isbn, copy) SELECT max(id) + 1, 'k', '978-4', 1 FROM loans`,
  ],
  [
    "a view with INSTEAD OF triggers",
    `CREATE VIEW shelf AS SELECT b.isbn, b.copy, b."Title" AS title, a.handle FROM library_books b LEFT JOIN authors a ON a.id = b.author;
     CREATE TRIGGER shelf_insert INSTEAD OF INSERT ON shelf BEGIN INSERT INTO authors (id, campus, handle) VALUES ('${uuid(30)}', 'k', NEW.handle);
       INSERT INTO library_books (isbn, copy, campus, "Title", author) VALUES (NEW.isbn, NEW.copy, 'k', NEW.title, '${uuid(30)}'); END;
     CREATE TRIGGER shelf_update INSTEAD OF UPDATE ON shelf BEGIN UPDATE library_books SET "Title" = NEW.title WHERE isbn = OLD.isbn AND copy = OLD.copy; END;
     CREATE TRIGGER shelf_delete INSTEAD OF DELETE ON shelf BEGIN DELETE FROM library_books WHERE isbn = OLD.isbn AND copy = OLD.copy; END;
     INSERT INTO shelf VALUES ('977-1', 1, 'By the view', 'viewer'); UPDATE shelf SET title = title || '!' WHERE handle IS NOT NULL; DELETE FROM shelf WHERE isbn = '978-5'; DROP VIEW shelf`,
  ],
  [
    "a program's triggers that write other synced tables, its own and temporary ones",
    `CREATE TRIGGER count_loans AFTER INSERT ON loans WHEN (SELECT active FROM schoolbus_deliver) = 0 BEGIN UPDATE authors SET fame = fame + 100 WHERE id = (SELECT author FROM library_books b WHERE b.isbn = NEW.isbn AND b.copy = NEW.copy);
       INSERT INTO visits (id, campus, "order") VALUES ('${uuid(22)}', 'k', 3); END;
     INSERT INTO loans (campus, isbn, copy) VALUES ('k', '977-1', 1);
     CREATE TEMP TRIGGER temporary AFTER UPDATE OF handle ON authors BEGIN UPDATE library_books SET "Title" = NEW.handle WHERE author = NEW.id; END;
     UPDATE authors SET handle = 'by temp' WHERE id = '${uuid(30)}'; DROP TRIGGER count_loans`,
  ],
  [
    "Django: a table built anew with its own constraints, renamed into place",
    `PRAGMA foreign_keys = OFF; BEGIN;
     CREATE TABLE "new__authors" ("id" char(36) NOT NULL PRIMARY KEY, "campus" text NOT NULL, "handle" varchar(80) NOT NULL UNIQUE, "email" varchar(254) NULL, "fame" integer NOT NULL DEFAULT 0 CHECK ("fame" >= 0), "born" date NULL);
     INSERT INTO "new__authors" ("id", "campus", "handle", "email", "fame", "born") SELECT "id", "campus", "handle", "email", "fame", NULL FROM "authors";
     DROP TABLE "authors"; ALTER TABLE "new__authors" RENAME TO "authors"; CREATE INDEX "authors_campus_idx" ON "authors" ("campus");
     UPDATE authors SET fame = fame + 1 WHERE handle = 'ten'; COMMIT; INSERT INTO authors (id, campus, handle) VALUES ('${uuid(40)}', 'k', 'django'); PRAGMA foreign_keys = ON`,
  ],
  [
    "Prisma: redefined tables, with foreign keys deferred",
    `PRAGMA defer_foreign_keys = ON; PRAGMA foreign_keys = OFF;
     CREATE TABLE "new_library_books" ("isbn" TEXT NOT NULL, "copy" INTEGER NOT NULL, "campus" TEXT NOT NULL, "Title" TEXT NOT NULL, "price" TEXT NOT NULL DEFAULT '1.50', "gross" TEXT, "tags" TEXT NOT NULL DEFAULT '{}', "author" TEXT, "shelf" TEXT NOT NULL DEFAULT 'A', PRIMARY KEY ("isbn", "copy"), CONSTRAINT "fk" FOREIGN KEY ("author") REFERENCES "authors" ("id") ON DELETE SET NULL ON UPDATE CASCADE);
     INSERT INTO "new_library_books" ("isbn", "copy", "campus", "Title", "price", "gross", "tags", "author") SELECT "isbn", "copy", "campus", "Title", "price", "gross", "tags", "author" FROM "library_books";
     DROP TABLE "library_books"; ALTER TABLE "new_library_books" RENAME TO "library_books";
     PRAGMA foreign_keys = ON; PRAGMA defer_foreign_keys = OFF; DELETE FROM authors WHERE handle = 'four'; UPDATE authors SET id = '${uuid(41)}' WHERE handle = 'by temp'`,
  ],
  [
    "knex: a copy aside, the table made again, the rows back",
    `BEGIN; CREATE TABLE \`_knex_temp_alter812\` (\`id\` text PRIMARY KEY, \`campus\` text, \`at\` text, \`order\` integer, \`guest\` boolean default '0');
     INSERT INTO _knex_temp_alter812 SELECT id, campus, at, "order", 0 FROM visits; DROP TABLE visits; ALTER TABLE \`_knex_temp_alter812\` RENAME TO \`visits\`; COMMIT;
     INSERT INTO visits (id, campus, "order") VALUES ('${uuid(23)}', 'k', 4)`,
  ],
  [
    "the old table renamed away first, and dropped in the end",
    `PRAGMA foreign_keys = OFF; BEGIN; ALTER TABLE loans RENAME TO loans_old;
     CREATE TABLE loans (id BIGINT PRIMARY KEY, campus TEXT NOT NULL, isbn TEXT, copy INT, due TEXT, "returned?" INT NOT NULL DEFAULT 0, note TEXT) WITHOUT ROWID;
     INSERT INTO loans SELECT id, campus, isbn, copy, due, "returned?", note FROM loans_old; DROP TABLE loans_old; UPDATE loans SET due = '2026-03-04'; COMMIT;
     UPDATE loans SET note = '[1, 2]' WHERE isbn = '978-4' AND NOT "returned?"`,
  ],
  [
    "the old table renamed away, emptied row by row, and dropped",
    `BEGIN; ALTER TABLE members RENAME TO members_old; CREATE TABLE members (id TEXT PRIMARY KEY, name TEXT NOT NULL, note TEXT); INSERT INTO members SELECT id, name, NULL FROM members_old; DELETE FROM members_old; DROP TABLE members_old; UPDATE members SET name = 'Zuri O.' WHERE name = 'Zuri'; COMMIT;
     INSERT INTO members (id, name) VALUES ('${uuid(50)}', 'Amina'); INSERT INTO memberships VALUES ('k', '${uuid(50)}')`,
  ],
  [
    "STRICT tables, and a key without regard to case",
    `PRAGMA foreign_keys = OFF; BEGIN; CREATE TABLE s (id TEXT PRIMARY KEY COLLATE NOCASE NOT NULL, campus TEXT, at TEXT, "order" INTEGER) STRICT; INSERT INTO s SELECT id, campus, at, "order" FROM visits; DROP TABLE visits; ALTER TABLE s RENAME TO visits; COMMIT;
     INSERT INTO visits VALUES ('0000000a-0000-4000-8000-000000000001', 'k', NULL, 7); UPDATE visits SET "order" = 8 WHERE id = '0000000A-0000-4000-8000-000000000001';
     INSERT OR REPLACE INTO visits (id, campus, "order") VALUES ('0000000a-0000-4000-8000-000000000001', 'k', 9)`,
  ],
  [
    "computed columns of the program's own, and rows of an attached file",
    `ALTER TABLE authors ADD COLUMN shout TEXT GENERATED ALWAYS AS (upper(handle)) VIRTUAL; CREATE UNIQUE INDEX by_shout ON authors (shout);
     ATTACH ':memory:' AS aside; CREATE TABLE aside.incoming (id TEXT, handle TEXT); INSERT INTO aside.incoming VALUES ('${uuid(60)}', 'attached'), ('${uuid(61)}', 'Ten');
     INSERT INTO main.authors (id, campus, handle) SELECT id, 'k', handle FROM aside.incoming WHERE handle <> 'Ten'; INSERT OR REPLACE INTO main.authors (id, campus, handle) SELECT id, 'k', handle FROM aside.incoming WHERE handle = 'Ten'`,
  ],
  [
    "a pupil's key that changes together with the link that places it",
    `PRAGMA foreign_keys = OFF; BEGIN; UPDATE members SET id = '${uuid(51)}' WHERE id = '${uuid(50)}'; UPDATE memberships SET member = '${uuid(51)}' WHERE member = '${uuid(50)}'; COMMIT`,
  ],
  [
    "cascades of the school's own file",
    `PRAGMA foreign_keys = ON; UPDATE authors SET id = '${uuid(70)}' WHERE handle = 'django'; DELETE FROM library_books WHERE isbn = '977-1'`,
  ],
  [
    "capture turned off, and left so",
    `UPDATE schoolbus_deliver SET active = 1; UPDATE authors SET fame = 71 WHERE handle = 'attached'; INSERT INTO library_books (isbn, copy, campus, "Title") VALUES ('80', 1, 'k', 'Unseen')`,
  ],
  [
    "the row by which capture is turned off deleted",
    `DELETE FROM schoolbus_deliver; UPDATE authors SET fame = 72 WHERE handle = 'attached'; UPDATE library_books SET "Title" = 'Seen' WHERE isbn = '80'`,
  ],
  [
    "everything deleted, in every table",
    `PRAGMA foreign_keys = OFF; BEGIN; DELETE FROM members; DELETE FROM memberships; DELETE FROM loans; DELETE FROM library_books; DELETE FROM visits; DELETE FROM authors WHERE fame < 1000; COMMIT`,
  ],
]

it.each(steps)("%s", async (_, sql) => {
  script(sql)
  await agree()
})

it("none of it was a conflict", async () => {
  expect([...(await world.sql`SELECT table_name, row_key, column_name, reason FROM schoolbus.conflicts`)]).toEqual([])
})
