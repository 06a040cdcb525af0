/** The programs that run: the hub, a school's node, and both for show. */
import { ADMIN_TOKEN, CONFIG, type Command, DATABASE, DATA_DIR, HOST, PORT } from "../command.ts"

export const nodes: ReadonlyArray<Command> = [
  {
    name: "hub",
    summary: "run the hub on the VPS",
    args: [],
    options: [CONFIG, DATABASE, DATA_DIR, PORT, HOST, ADMIN_TOKEN],
    examples: [
      "schoolbus hub --config schoolbus.config.ts --database-url postgres://schoolbus@127.0.0.1/school",
      "SCHOOLBUS_DATABASE_URL_FILE=/etc/schoolbus/db schoolbus hub --data-dir /var/lib/schoolbus",
    ],
    load: () => import("../services.ts").then((m) => m.hub),
  },
  {
    name: "school",
    summary: "run the node of one school",
    args: [],
    options: [
      { name: "hub", kind: "text", required: true, help: "address of the hub, e.g. https://sync.example.org" },
      { name: "key", kind: "text", secret: true, required: true, help: "the school's key, from: schoolbus schools add" },
      DATA_DIR,
      PORT,
      { name: "iclock-port", kind: "port", help: "port for attendance terminals; absent = no terminals" },
      { name: "iclock-host", kind: "text", help: "address that terminals call, e.g. that of the LAN; absent = as --host" },
      HOST,
      ADMIN_TOKEN,
      { name: "adopt", kind: "flag", help: "take over tables with rows that stand in school.db already" },
      {
        name: "new-life",
        kind: "flag",
        help: "once, for a file that was copied or put back from a backup: it starts anew and sends what has no verdict again",
      },
      { name: "workers", kind: "text", help: "folder of worker modules" },
      { name: "metered", kind: "flag", help: "the link costs by the byte: sync in cycles, critical changes at once" },
      { name: "cycle-minutes", kind: "number", default: "15", help: "metered: minutes between two cycles" },
      { name: "budget-mb", kind: "number", help: "metered: megabytes a day, both directions; absent = no limit" },
      { name: "hours", kind: "list", help: "metered: times of day when it may call, e.g. 19:00-06:00,12:00-13:00; absent = always" },
    ],
    examples: [
      "schoolbus school --hub https://sync.example.org --key-file /etc/schoolbus/key",
      "schoolbus school --hub http://10.0.0.1:4480 --key sb_… --iclock-port 8081",
    ],
    load: () => import("../services.ts").then((m) => m.school),
  },
  {
    name: "demo",
    summary: "hub, two schools and a terminal on this machine, with a Postgres of their own",
    args: [],
    options: [{ name: "check", kind: "flag", help: "play a fixed scenario, verify it, exit 0 or 1" }],
    examples: ["schoolbus demo", "schoolbus demo --check"],
    load: () => import("../demo.ts").then((m) => m.run),
  },
]
