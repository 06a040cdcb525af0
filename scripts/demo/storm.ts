/** The act in which hub and schools are killed while all sides write. */
import { equal } from "./facts.ts"
import { one, pupils, type Scene, soon, uuid } from "./scene.ts"
import type { School } from "./stage.ts"

/** Rows written from each side while hub and school are killed. */
const STORM_ROWS = 200
const STORM_STEP_MS = 15

export const storm = async (scene: Scene): Promise<void> => {
  const { stage, facts, office } = scene
  const { north, south, hub, terminal } = stage
  facts.heading("kill -9 while both sides write")
  const pupilOf = new Map<string, string>()
  for (const school of ["north", "south"]) pupilOf.set(school, (await pupils(scene, school))[0]?.id ?? "")
  const subject = String(await one(scene, "SELECT id::text FROM subjects ORDER BY code LIMIT 1"))
  const made: Record<"office" | "north" | "south", Array<string>> = { office: [], north: [], south: [] }

  const fromOffice = async (): Promise<void> => {
    for (let n = 0; n < STORM_ROWS; n++) {
      const [id, school] = [uuid(), n % 2 === 0 ? "north" : "south"]
      await office(
        "INSERT INTO marks (id, school_id, student_id, subject_id, term, score, remark) VALUES ($1::uuid, $2, $3::uuid, $4::uuid, 3, 50, 'office')",
        ...[id, school, pupilOf.get(school) ?? "", subject],
      )
      made.office.push(id)
      await soon(STORM_STEP_MS)
    }
  }
  const fromSchool = async (school: School, ids: Array<string>): Promise<void> => {
    for (let n = 0; n < STORM_ROWS; n++) {
      const id = uuid()
      school.write(
        "INSERT INTO marks (id, school_id, student_id, subject_id, term, score, remark, marked_at) VALUES (?, ?, ?, ?, 3, '50.00', 'school', '2026-06-01 08:00:00+00')",
        ...[id, school.id, pupilOf.get(school.id) ?? "", subject],
      )
      ids.push(id)
      await soon(STORM_STEP_MS)
    }
  }
  const punchesBefore = terminal.punches()
  const pins = terminal
    .users()
    .slice(5, 15)
    .map(({ pin }) => pin)
  const fromTerminal = async (): Promise<void> => {
    for (const pin of pins) {
      terminal.punch(pin)
      await soon((STORM_ROWS * STORM_STEP_MS) / pins.length)
    }
  }
  const kills = async (): Promise<void> => {
    for (const service of [hub, north.service, hub, south.service]) {
      await soon((STORM_ROWS * STORM_STEP_MS) / 5)
      await service.kill()
      service.start()
    }
  }
  await Promise.all([fromOffice(), fromSchool(north, made.north), fromSchool(south, made.south), fromTerminal(), kills()])
  const wanted = made.north.length + made.south.length + made.office.length
  await facts.become(
    `hub killed twice, each school once: all ${wanted} rows are in Postgres`,
    async () => {
      const ids = [...made.office, ...made.north, ...made.south]
      return equal(await one(scene, "SELECT count(*)::int FROM marks WHERE id::text = ANY (string_to_array($1, ','))", ids.join(",")), wanted)
    },
    45,
  )
  await facts.become("... each written once, none twice", async () =>
    equal(
      await one(
        scene,
        "SELECT count(*)::int FROM (SELECT id FROM demo.writes WHERE id IN (SELECT id FROM marks WHERE remark IN ('office', 'school')) GROUP BY id HAVING count(*) <> 1) AS twice",
      ),
      0,
    ),
  )
  await facts.become("... and every punch once", async () =>
    equal(
      [
        await one(scene, "SELECT count(*)::int FROM schoolbus.punches"),
        await one(scene, "SELECT count(DISTINCT (pin, at, status))::int FROM schoolbus.punches"),
      ],
      [punchesBefore + pins.length, punchesBefore + pins.length],
    ),
  )
}
