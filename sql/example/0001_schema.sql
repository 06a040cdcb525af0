-- A school system at head office: what a ministry, a church or a chain of schools keeps for all its schools in one Postgres.
-- Every row that belongs to one school says so in school_id; schoolbus.config.ts beside package.json builds on that.
CREATE TYPE user_role AS ENUM ('administrator', 'head', 'teacher', 'clerk');
CREATE TYPE gender AS ENUM ('female', 'male');
CREATE TYPE attendance_status AS ENUM ('present', 'absent', 'late', 'excused');
CREATE TYPE payment_method AS ENUM ('cash', 'bank', 'mobile_money', 'cheque');
CREATE TYPE enrolment_status AS ENUM ('enrolled', 'transferred', 'completed', 'dropped_out');

-- Shared by all schools, written at head office only.

CREATE TABLE schools (
  id        text PRIMARY KEY,                    -- 'north': the same id that `schoolbus schools add` is given
  name      text NOT NULL,
  district  text NOT NULL,
  opened_on date,
  settings  jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE academic_years (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  name       text NOT NULL UNIQUE,
  starts_on  date NOT NULL,
  ends_on    date NOT NULL,
  is_current boolean NOT NULL DEFAULT false,
  CHECK (ends_on > starts_on)
);

CREATE TABLE subjects (
  id       uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  code     text NOT NULL UNIQUE,
  name     text NOT NULL,
  max_mark numeric(5,2) NOT NULL DEFAULT 100 CHECK (max_mark > 0)
);

-- Belong to one school each.

CREATE TABLE users (
  id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id     text REFERENCES schools (id),    -- null: works at head office, and is in no school's file
  username      text NOT NULL UNIQUE,
  full_name     text NOT NULL,
  role          user_role NOT NULL,
  password_hash text NOT NULL,
  last_login    timestamptz,
  is_active     boolean NOT NULL DEFAULT true,
  created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE classes (
  id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id        text NOT NULL REFERENCES schools (id),
  academic_year_id uuid NOT NULL REFERENCES academic_years (id),
  name             text NOT NULL,
  teacher_id       uuid REFERENCES users (id) ON DELETE SET NULL,
  UNIQUE (school_id, academic_year_id, name)
);

CREATE TABLE students (
  id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id     text NOT NULL REFERENCES schools (id),
  class_id      uuid REFERENCES classes (id) ON DELETE SET NULL,
  admission_no  text NOT NULL,
  full_name     text NOT NULL CHECK (full_name <> ''),
  gender        gender,
  born_on       date,
  phone         text,
  address       text,
  guardians     jsonb NOT NULL DEFAULT '[]',
  medical_notes text,
  rfid_card_id  text UNIQUE,                     -- the card that opens the day at the terminal
  is_active     boolean NOT NULL DEFAULT true,
  created_at    timestamptz NOT NULL DEFAULT now(),
  UNIQUE (school_id, admission_no)
);
CREATE INDEX students_class ON students (class_id);

CREATE TABLE enrolments (
  id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id        text NOT NULL REFERENCES schools (id),
  student_id       uuid NOT NULL REFERENCES students (id) ON DELETE CASCADE,
  class_id         uuid NOT NULL REFERENCES classes (id),
  academic_year_id uuid NOT NULL REFERENCES academic_years (id),
  status           enrolment_status NOT NULL DEFAULT 'enrolled',
  enrolled_on      date NOT NULL DEFAULT CURRENT_DATE,
  UNIQUE (student_id, academic_year_id, school_id)
);

CREATE TABLE marks (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id  text NOT NULL REFERENCES schools (id),
  student_id uuid NOT NULL REFERENCES students (id) ON DELETE CASCADE,
  subject_id uuid NOT NULL REFERENCES subjects (id),
  teacher_id uuid REFERENCES users (id) ON DELETE SET NULL,
  term       smallint NOT NULL CHECK (term BETWEEN 1 AND 3),
  score      numeric(5,2) CHECK (score >= 0),
  remark     text,
  marked_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX marks_student ON marks (student_id, subject_id, term);

CREATE TABLE attendance (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id  text NOT NULL REFERENCES schools (id),
  student_id uuid NOT NULL REFERENCES students (id) ON DELETE CASCADE,
  class_id   uuid REFERENCES classes (id) ON DELETE SET NULL,
  day        date NOT NULL,
  punched_at timestamptz,                        -- null: entered by a teacher
  status     attendance_status NOT NULL DEFAULT 'present',
  note       text,
  UNIQUE (student_id, day)
);
CREATE INDEX attendance_day ON attendance (school_id, day);

CREATE TABLE payments (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id  text NOT NULL REFERENCES schools (id),
  student_id uuid NOT NULL REFERENCES students (id),
  amount     numeric(12,2) NOT NULL CHECK (amount <> 0),
  method     payment_method NOT NULL,
  reference  text NOT NULL UNIQUE,
  note       text,
  paid_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX payments_student ON payments (student_id);

CREATE TABLE announcements (
  id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id    text NOT NULL REFERENCES schools (id),
  title        text NOT NULL,
  body         text NOT NULL,
  is_pinned    boolean NOT NULL DEFAULT false,
  published_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE audit_logs (
  id        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  school_id text NOT NULL REFERENCES schools (id),
  actor     text NOT NULL,
  action    text NOT NULL,
  detail    jsonb NOT NULL DEFAULT '{}',
  at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_logs_at ON audit_logs (school_id, at);
