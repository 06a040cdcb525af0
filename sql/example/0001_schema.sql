-- A school system: what head office keeps in Postgres. Rows of one school carry its id in school_id.
CREATE TYPE attendance_status AS ENUM ('present', 'late', 'absent', 'excused');

CREATE TABLE schools (
  id      text PRIMARY KEY,
  name    text NOT NULL,
  phone   text
);
CREATE TABLE academic_years (
  id        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  name      text NOT NULL UNIQUE,
  starts_on date NOT NULL,
  ends_on   date NOT NULL CHECK (ends_on > starts_on)
);
CREATE TABLE subjects (
  id   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  code text NOT NULL UNIQUE,
  name text NOT NULL
);
CREATE TABLE users (
  id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id     text NOT NULL REFERENCES schools (id),
  username      text NOT NULL UNIQUE,
  full_name     text NOT NULL,
  role          text NOT NULL CHECK (role IN ('teacher', 'head', 'secretary')),
  password_hash text NOT NULL,
  last_login    timestamptz
);
CREATE TABLE classes (
  id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id        text NOT NULL REFERENCES schools (id),
  academic_year_id uuid NOT NULL REFERENCES academic_years (id),
  name             text NOT NULL,
  UNIQUE (school_id, academic_year_id, name)
);
CREATE TABLE students (
  id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id    text NOT NULL REFERENCES schools (id),
  class_id     uuid REFERENCES classes (id),
  full_name    text NOT NULL,
  born_on      date,
  phone        text,
  rfid_card_id text,
  is_active    boolean NOT NULL DEFAULT true,
  details      jsonb,
  updated_at   timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE enrolments (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id  text NOT NULL REFERENCES schools (id),
  student_id uuid NOT NULL REFERENCES students (id) ON DELETE CASCADE,
  class_id   uuid NOT NULL REFERENCES classes (id),
  since      date NOT NULL DEFAULT current_date,
  UNIQUE (student_id, class_id)
);
CREATE TABLE marks (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id  text NOT NULL REFERENCES schools (id),
  student_id uuid NOT NULL REFERENCES students (id) ON DELETE CASCADE,
  subject_id uuid NOT NULL REFERENCES subjects (id),
  points     numeric(5,2) NOT NULL CHECK (points BETWEEN 0 AND 100),
  comment    text,
  given_at   timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE attendance (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id  text NOT NULL REFERENCES schools (id),
  student_id uuid NOT NULL REFERENCES students (id) ON DELETE CASCADE,
  punched_at timestamptz NOT NULL,
  status     attendance_status NOT NULL DEFAULT 'present'
);
CREATE TABLE payments (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id  text NOT NULL REFERENCES schools (id),
  student_id uuid NOT NULL REFERENCES students (id),
  amount     numeric(12,2) NOT NULL,
  state      text NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'paid', 'cancelled')),
  due_on     date NOT NULL
);
CREATE TABLE announcements (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  title      text NOT NULL,
  body       text NOT NULL,
  sent_at    timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE audit_logs (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id  text NOT NULL REFERENCES schools (id),
  actor      text NOT NULL,
  action     text NOT NULL,
  at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON students (school_id);
CREATE INDEX ON attendance (school_id, punched_at);
