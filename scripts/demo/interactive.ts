/** The demo to play with: says where everything is, shows what arrives where, and takes single keys. */
import process from "node:process"
import { schoolbus } from "./process.ts"
import { SERIAL, type School, type Stage } from "./stage.ts"

const LOOK_MS = 300

const intro = (stage: Stage): string => `
Head office   psql ${stage.databaseUrl}
Hub           ${stage.hubUrl}/api/sync/status
North         sqlite3 ${stage.north.dir}/school.db     ${stage.north.url}
South         sqlite3 ${stage.south.dir}/school.db     ${stage.south.url}
Terminal      ${SERIAL}, at North
Logs          ${stage.dir}/*.log

Try, while you watch this window:
  psql:     UPDATE students SET full_name = 'Your Name' WHERE admission_no = '0001' AND school_id = 'north';
  psql:     UPDATE students SET school_id = 'south', class_id = NULL, admission_no = 'N2' WHERE admission_no = '0002' AND school_id = 'north';
  sqlite3:  PRAGMA busy_timeout = 5000; UPDATE marks SET score = '99.00' WHERE id = (SELECT id FROM marks LIMIT 1);
  Press c, write on both sides, press c again. A pupil's medical_notes wait for a person then:
  bun src/main.ts conflicts list --url ${stage.hubUrl}

Keys: e a pupil is entered at head office · p a pupil punches · m a teacher changes a mark · c cut or restore North's line · s status · q quit`

interface Watched {
  readonly where: string
  readonly read: () => Promise<ReadonlyMap<string, string>> | ReadonlyMap<string, string>
}

const keyed = (rows: ReadonlyArray<Readonly<Record<string, unknown>>>): ReadonlyMap<string, string> =>
  new Map(rows.map((row) => [String(row["what"]), String(row["value"])]))

/** What the window shows: pupils, marks and punches, as one text per row. */
const SHOWN = `
  SELECT 'pupil ' || admission_no || ' of ' || school_id AS what, full_name AS value FROM students
  UNION ALL SELECT 'mark ' || substr(CAST(id AS text), 1, 8) || ' of ' || school_id, CAST(score AS text) FROM marks`
const PUNCHES_HERE = "SELECT 'punch of ' || pin AS what, max(at) AS value FROM punches GROUP BY pin"

const watched = (stage: Stage): ReadonlyArray<Watched> => [
  {
    where: "Postgres",
    read: async () => keyed(await stage.sql.unsafe(`${SHOWN} UNION ALL ${PUNCHES_HERE.replace("punches", "schoolbus.punches")}`)),
  },
  ...[stage.north, stage.south].map((school: School) => ({
    where: school.id,
    read: () => keyed(school.rows(`${SHOWN} UNION ALL SELECT * FROM (${PUNCHES_HERE})`)),
  })),
  { where: "terminal", read: () => new Map(stage.terminal.users().map((user) => [`person ${user.pin}`, user.name])) },
]

/** Prints each difference from the last look. */
const looker = (place: Watched, print: (line: string) => void): (() => Promise<void>) => {
  let before: ReadonlyMap<string, string> | undefined
  return async () => {
    const now = await place.read()
    const say = (text: string): void => print(`${place.where.padEnd(9)} ${text}`)
    if (before !== undefined) {
      for (const [what, value] of now) if (before.get(what) !== value) say(`${before.has(what) ? "changed" : "new"}: ${what}: ${value}`)
      for (const what of before.keys()) if (!now.has(what)) say(`gone: ${what}`)
    }
    before = now
  }
}

const readKeys = (onKey: (key: string) => void): void => {
  if (process.stdin.isTTY) process.stdin.setRawMode(true)
  process.stdin.setEncoding("utf8")
  process.stdin.on("data", (text) => {
    for (const key of String(text)) onKey(key)
  })
}

/** Returns when the person quits; without a terminal it goes on until a signal comes. */
export const interactive = async (stage: Stage, print: (line: string) => void): Promise<void> => {
  const { north, terminal, sql } = stage
  const approve = async (): Promise<boolean> =>
    (await schoolbus("devices", "approve", SERIAL, "--zone", "Africa/Nairobi", "--url", north.url)).code === 0
  for (let tries = 0; tries < 60 && !(await approve()); tries++) await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
  print(intro(stage))

  let quit = false
  let entered = 0
  const actions: Readonly<Record<string, () => Promise<unknown> | unknown>> = {
    e: () => {
      const n = ++entered
      print(`          head office enters New Pupil ${n} of North`)
      return sql`INSERT INTO students (school_id, class_id, admission_no, full_name, rfid_card_id)
                 SELECT 'north', id, ${`D${n}`}, ${`New Pupil ${n}`}, ${String(95_000_000 + n)} FROM classes WHERE school_id = 'north' AND name = 'Grade 1'`
    },
    p: () => {
      const users = terminal.users()
      const user = users[Math.floor(Math.random() * users.length)]
      print(user === undefined ? "          nobody is on the terminal yet" : `          ${user.name} punches`)
      if (user !== undefined) terminal.punch(user.pin)
    },
    m: () => {
      print("          a teacher of North changes a mark in the school's own program")
      const score = `${50 + Math.floor(Math.random() * 50)}.00`
      north.write("UPDATE marks SET score = ? WHERE id = (SELECT id FROM marks ORDER BY random() LIMIT 1)", score)
    },
    c: () => {
      if (north.line.isCut()) north.line.restore()
      else north.line.cut()
      print(north.line.isCut() ? "          North's line is cut" : "          North's line is back; the node tries again within seconds")
    },
    s: async () => {
      for (const url of [stage.hubUrl, north.url]) print((await schoolbus("status", "--url", url)).out)
    },
    q: () => {
      quit = true
    },
  }
  const failed = (cause: unknown): void => print(`          ${cause instanceof Error ? cause.message : String(cause)}`)
  readKeys((key) => {
    // In raw mode the terminal sends Ctrl-C and Ctrl-D as characters.
    const action = key === "\u0003" || key === "\u0004" ? actions["q"] : actions[key]
    if (action !== undefined) void Promise.resolve().then(action).catch(failed)
  })
  const lookers = watched(stage).map((place) => looker(place, print))
  while (!quit) {
    // A service that was killed here a moment ago answers nothing: there is nothing to show then.
    for (const look of lookers) await look().catch(() => undefined)
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
  }
  print("          ending")
}
