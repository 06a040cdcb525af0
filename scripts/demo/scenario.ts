/**
 * The fixed scenario of `demo --check`: what schoolbus promises, played on real processes and read back from Postgres, both
 * school files and the terminal. Every write is an ordinary program's: SQL at head office, SQL in a school's file, a punch.
 */
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { sameRows, samePeople } from "./compare.ts"
import { equal, type Facts } from "./facts.ts"
import { schoolbus } from "./process.ts"
import { bothHave, first, one, pupils, type Scene, soon, uuid } from "./scene.ts"
import { SERIAL, type Stage } from "./stage.ts"
import { storm } from "./storm.ts"

const at = async (service: { readonly url: string }): Promise<Record<string, unknown>> => {
  const { out } = await schoolbus("status", "--url", service.url, "--json")
  return JSON.parse(out) as Record<string, unknown>
}

const firstCopy = async ({ stage, facts, office }: Scene): Promise<void> => {
  facts.heading("First copy")
  for (const school of [stage.north, stage.south]) {
    await facts.become(`${school.id} holds its own rows and those of all schools`, () => sameRows(stage, school, new Set()), 40)
    await facts.become(`${school.id} holds no row of another school`, () =>
      equal(first(school, "SELECT count(*) FROM students WHERE school_id <> ?", school.id), 0),
    )
  }
  await facts.become("status of both schools is up_to_date", async () =>
    equal([(await at(stage.north)).state, (await at(stage.south)).state], ["up_to_date", "up_to_date"]),
  )
  await facts.become("a terminal that nobody approved is listed and holds nobody", async () => {
    const { out } = await schoolbus("devices", "list", "--url", stage.north.url, "--json")
    return out.includes(SERIAL) ? equal(stage.terminal.users(), []) : "not listed"
  })
  await facts.become("approved, it holds every active pupil with a card", async () => {
    if (stage.terminal.users().length === 0) await schoolbus("devices", "approve", SERIAL, "--zone", "Africa/Nairobi", "--url", stage.north.url)
    return await samePeople(stage)
  })
  // Head office's own note of every write to marks: shows whether a row was written twice.
  await office("CREATE SCHEMA demo")
  await office("CREATE TABLE demo.writes (n bigserial PRIMARY KEY, id uuid NOT NULL, op text NOT NULL)")
  await office(
    `CREATE FUNCTION demo.note() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN INSERT INTO demo.writes (id, op) VALUES (coalesce(NEW.id, OLD.id), TG_OP); RETURN NULL; END $$`,
  )
  await office("CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON marks FOR EACH ROW EXECUTE FUNCTION demo.note()")
}

const online = async (scene: Scene): Promise<void> => {
  const { stage, facts, office } = scene
  const { north, south, terminal } = stage
  facts.heading("With internet")
  const pupil = uuid()
  await office(
    `INSERT INTO students (id, school_id, class_id, admission_no, full_name, born_on, rfid_card_id)
     SELECT $1::uuid, 'north', id, '0901', 'Zawadi Njoroge', '2017-03-09', '90000001' FROM classes WHERE school_id = 'north' AND name = 'Grade 1'`,
    pupil,
  )
  await facts.become("a pupil entered in Postgres appears in the file of the right school", () =>
    equal(first(north, "SELECT full_name FROM students WHERE id = ?", pupil), "Zawadi Njoroge"),
  )
  await facts.become("... on the terminal of that school", () => terminal.users().some(({ name }) => name === "Zawadi Njoroge") || "not there")
  await facts.become("... and not in the other school", () => equal(first(south, "SELECT count(*) FROM students WHERE id = ?", pupil), 0))

  const pin = terminal.users().find(({ name }) => name === "Zawadi Njoroge")?.pin ?? ""
  terminal.punch(pin)
  await facts.become("her punch appears in Postgres, with her name", async () =>
    equal(
      await one(scene, "SELECT s.full_name FROM schoolbus.punches p JOIN students s ON s.id::text = p.person_id WHERE p.pin = $1", pin),
      "Zawadi Njoroge",
    ),
  )
  await facts.become("... and made her attendance row", async () =>
    equal(await one(scene, "SELECT status::text FROM attendance WHERE student_id = $1::uuid", pupil), "present"),
  )

  terminal.punch(pin, "2026-06-02 08:31:00")
  await facts.become("a worker module of the school notes who came after the bell", () => {
    const file = join(north.dir, "workers/late/late.txt")
    return (existsSync(file) && readFileSync(file, "utf8").includes("2026-06-02 08:31:00 late Zawadi Njoroge")) || "no line"
  })
  await facts.become("... and that punch is in Postgres, too", async () =>
    equal(await one(scene, "SELECT count(*)::int FROM schoolbus.punches WHERE pin = $1", pin), 2),
  )

  const mark = uuid()
  south.write(
    "INSERT INTO marks (id, school_id, student_id, subject_id, term, score, marked_at) SELECT ?, 'south', (SELECT id FROM students LIMIT 1), (SELECT id FROM subjects LIMIT 1), 2, '71.50', '2026-06-01 08:00:00+00'",
    mark,
  )
  await facts.become("a mark that a teacher enters in the school appears in Postgres", async () =>
    equal(await one(scene, "SELECT score::text FROM marks WHERE id = $1::uuid", mark), "71.50"),
  )
}

const offline = async (scene: Scene): Promise<void> => {
  const { stage, facts, office, waiting } = scene
  const { north, terminal } = stage
  facts.heading("North without internet, both sides go on")
  const all = await pupils(scene, "north", "admission_no <> '0901'")
  const idOf = (n: number): string => all[n]?.id ?? ""
  const rowOf = async (table: string, n: number): Promise<string> =>
    String(await one(scene, `SELECT id::text FROM ${table} WHERE student_id = $1::uuid ORDER BY id LIMIT 1`, idOf(n)))
  const [attended, paid, olderHere, newerHere] = [
    await rowOf("attendance", 0),
    await rowOf("payments", 1),
    await rowOf("marks", 2),
    await rowOf("marks", 3),
  ]
  const entered = uuid()
  const removed = await rowOf("attendance", 8)

  north.line.cut()
  await facts.become("status of north says offline", async () => equal((await at(north)).state, "offline"))

  // Marks that head office corrects after the school, and before it.
  const times = [
    north.write("UPDATE marks SET score = '55.00' WHERE id = ?", olderHere),
    north.write("UPDATE attendance SET status = 'late', note = 'bus' WHERE id = ?", attended),
    north.write("UPDATE payments SET note = 'school says cash' WHERE id = ?", paid),
    north.write("UPDATE students SET address = 'moved to the lake' WHERE id = ?", idOf(4)),
    north.write("UPDATE students SET medical_notes = 'asthma' WHERE id = ?", idOf(5)),
    north.write("DELETE FROM attendance WHERE id = ?", removed),
    north.write(
      "INSERT INTO students (id, school_id, admission_no, full_name, guardians, is_active, created_at, rfid_card_id) VALUES (?, 'north', '0902', 'Baraka Auma', '[]', 1, '2026-06-01 08:00:00+00', '90000002')",
      entered,
    ),
  ]
  await soon(20)
  await office("UPDATE marks SET score = 60 WHERE id = $1::uuid", olderHere)
  await office("UPDATE marks SET score = 62 WHERE id = $1::uuid", newerHere)
  await office("UPDATE attendance SET status = 'absent' WHERE id = $1::uuid", attended)
  await office("UPDATE payments SET note = 'office says bank' WHERE id = $1::uuid", paid)
  await office("UPDATE students SET full_name = 'Renamed Pupil' WHERE id = $1::uuid", idOf(4))
  await office("UPDATE students SET medical_notes = 'none known' WHERE id = $1::uuid", idOf(5))
  await office("UPDATE students SET full_name = 'Sent While Away' WHERE id = $1::uuid", idOf(6))
  await soon(20)
  times.push(north.write("UPDATE marks SET score = '48.00' WHERE id = ?", newerHere))

  const before = terminal.punches()
  const pins = terminal
    .users()
    .slice(0, 5)
    .map(({ pin }) => pin)
  for (const pin of pins) terminal.punch(pin)
  await facts.become("the terminal goes on: five punches stand in the school's file", () =>
    terminal.punches() === before + 5 && terminal.unsent() === 0
      ? equal(first(north, "SELECT count(*) FROM punches"), before + 5)
      : `${terminal.unsent()} unsent`,
  )
  await facts.become(
    `the school's program goes on: its slowest write took ${Math.max(...times).toFixed(1)} ms`,
    () => Math.max(...times) < 1000 || "more than a second",
  )
  await facts.become(
    "a pupil entered in the school is on the terminal without head office",
    () => terminal.users().some(({ name }) => name === "Baraka Auma") || "not there",
  )
  await facts.become("nothing of it is in Postgres yet", async () =>
    equal(
      [
        await one(scene, "SELECT count(*)::int FROM schoolbus.punches"),
        await one(scene, "SELECT count(*)::int FROM students WHERE id = $1::uuid", entered),
      ],
      [before, 0],
    ),
  )

  facts.heading("The line is back")
  north.line.restore()
  await schoolbus("sync", "--url", north.url)
  await facts.become("the pupil entered while away is in Postgres", async () =>
    equal(await one(scene, "SELECT full_name FROM students WHERE id = $1::uuid", entered), "Baraka Auma"),
  )
  await facts.become("every punch is in Postgres, once", async () =>
    equal(
      [
        await one(scene, "SELECT count(*)::int FROM schoolbus.punches"),
        await one(scene, "SELECT count(DISTINCT (pin, at, status))::int FROM schoolbus.punches"),
      ],
      [before + 5, before + 5],
    ),
  )
  await facts.become("what head office wrote meanwhile is in the school", bothHave(scene, north, "students", "full_name", idOf(6), "Sent While Away"))
  await facts.become("the deleted row is gone on both sides", bothHave(scene, north, "attendance", "id", removed, null))

  facts.heading("Both sides had written the same rows")
  await facts.become("attendance: the school wins", bothHave(scene, north, "attendance", "status", attended, "late"))
  await facts.become(
    "payments: head office wins, and the school's file follows",
    bothHave(scene, north, "payments", "note", paid, "office says bank"),
  )
  await facts.become("marks: the newer wins, here head office", bothHave(scene, north, "marks", "score", olderHere, "60.00"))
  await facts.become("marks: the newer wins, here the school", bothHave(scene, north, "marks", "score", newerHere, "48.00"))
  await facts.become("different columns of one row: both edits stay", async () => {
    const address = await bothHave(scene, north, "students", "address", idOf(4), "moved to the lake")()
    return address === true ? await bothHave(scene, north, "students", "full_name", idOf(4), "Renamed Pupil")() : address
  })

  let conflict = ""
  await facts.become("medical notes wait for a person, and each side keeps its own", async () => {
    const { out } = await schoolbus("conflicts", "list", "--url", stage.hubUrl, "--json")
    const open = (JSON.parse(out) as { items: ReadonlyArray<{ id: string; column: string | null; status: string }> }).items.filter(
      ({ status }) => status === "open",
    )
    conflict = open.find(({ column }) => column === "medical_notes")?.id ?? ""
    if (conflict === "") return `open conflicts: ${JSON.stringify(open)}`
    return equal(
      [
        await one(scene, "SELECT medical_notes FROM students WHERE id = $1::uuid", idOf(5)),
        first(north, "SELECT medical_notes FROM students WHERE id = ?", idOf(5)),
      ],
      ["none known", "asthma"],
    )
  })
  await schoolbus("conflicts", "resolve", conflict, "--keep", "school", "--by", "demo", "--url", stage.hubUrl)
  await facts.become("decided for the school, both sides hold the school's", bothHave(scene, north, "students", "medical_notes", idOf(5), "asthma"))

  const foreign = uuid()
  waiting.add(foreign)
  north.write(
    "INSERT INTO announcements (id, school_id, title, body, is_pinned, published_at) VALUES (?, 'south', 'Not ours', 'x', 0, '2026-06-01 08:00:00+00')",
    foreign,
  )
  await facts.become("a row that north writes for south is put aside, and nothing of it is written", async () => {
    const [row] = await office("SELECT status FROM schoolbus.quarantine WHERE row_key LIKE '%' || $1 || '%'", foreign)
    if (row === undefined) return "no record of it"
    return equal(
      [
        await one(scene, "SELECT count(*)::int FROM announcements WHERE id = $1::uuid", foreign),
        first(stage.south, "SELECT count(*) FROM announcements WHERE id = ?", foreign),
      ],
      [0, 0],
    )
  })
}

const moves = async (scene: Scene): Promise<void> => {
  const { stage, facts, office } = scene
  const { north, south, terminal } = stage
  facts.heading("Moves and deletes")
  const [mover, leaver] = await pupils(scene, "north", "rfid_card_id IS NOT NULL AND full_name NOT IN ('Zawadi Njoroge', 'Baraka Auma')").then(
    (all) => all.slice(10),
  )
  const [id, name] = [mover?.id ?? "", mover?.full_name ?? ""]
  const card = String(await one(scene, "SELECT rfid_card_id FROM students WHERE id = $1::uuid", id))
  const onTerminal = (): boolean => terminal.users().some((user) => user.card.replace(/[[\]]/g, "") === card)
  await facts.become(`${name} is on north's terminal`, () => onTerminal() || "not there")
  await office(
    `UPDATE students SET school_id = 'south', class_id = (SELECT id FROM classes WHERE school_id = 'south' AND name = 'Grade 2'), admission_no = 'N' || admission_no WHERE id = $1::uuid`,
    id,
  )
  await facts.become(`moved to south, ${name} is in south's file`, () => equal(first(south, "SELECT full_name FROM students WHERE id = ?", id), name))
  await facts.become("... gone from north's", () => equal(first(north, "SELECT count(*) FROM students WHERE id = ?", id), 0))
  await facts.become("... and from north's terminal", () => !onTerminal() || "still there")

  await office("UPDATE students SET is_active = false WHERE id = $1::uuid", leaver?.id ?? "")
  await facts.become("a pupil who is not active any more leaves the terminal", () => samePeople(stage))
  const gone = String(await one(scene, "SELECT id::text FROM announcements WHERE school_id = 'south'"))
  await office("DELETE FROM announcements WHERE id = $1::uuid", gone)
  await facts.become("a row deleted at head office leaves the school", bothHave(scene, south, "announcements", "id", gone, null))
}

const ending = async ({ stage, facts, waiting }: Scene): Promise<void> => {
  facts.heading("At the end, all sides side by side")
  await facts.become("north's file equals Postgres, value by value", () => sameRows(stage, stage.north, waiting), 30)
  await facts.become("south's file equals Postgres, value by value", () => sameRows(stage, stage.south, new Set()))
  await facts.become("the terminal holds exactly the active pupils with a card", () => samePeople(stage))
  await facts.become("no change waits in a school", () =>
    equal(
      [stage.north, stage.south].map((school) => first(school, "SELECT count(*) FROM changes")),
      [0, 0],
    ),
  )
  await facts.become("the slot holds nothing back for long: all but the newest is confirmed", async () => {
    const [row] = await stage.sql`SELECT lag_bytes::int AS lag, active FROM schoolbus.slot_health`
    return row?.active === true && row.lag < 1_000_000 ? true : JSON.stringify(row)
  })
  await facts.become("SIGTERM ends hub, schools and terminal cleanly", async () => {
    const { hub, north, south, terminal } = stage
    const codes = await Promise.all([hub, north.service, south.service, terminal.service].map((one) => (one.isRunning() ? one.stop() : 0)))
    return equal(codes, [0, 0, 0, 0])
  })
}

export const play = async (stage: Stage, facts: Facts): Promise<void> => {
  const scene: Scene = { stage, facts, waiting: new Set(), office: async (sql, ...params) => [...(await stage.sql.unsafe(sql, params as never))] }
  for (const part of [firstCopy, online, offline, moves, storm, ending]) await part(scene)
}
