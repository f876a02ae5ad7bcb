//! When a CronJob is due: the five fields of crontab(5). Pure.

use k8s_openapi::jiff::civil::Date;
use k8s_openapi::jiff::{ToSpan as _, Zoned};

/// How far ahead or back a day is looked for; the 29th of February is within it.
const DAYS_MAX: i64 = 366 * 8;
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// Names for common schedules.
const MACROS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// A schedule: in each field the bits of the values that fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether every day of the month, or every weekday, fits: then only the other field counts.
    any_day: bool,
    any_weekday: bool,
}

impl Schedule {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let known = MACROS.iter().find(|(name, _)| text == *name);
        let fields: Vec<&str> =
            known.map_or(text, |(_, fields)| *fields).split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: {text:?}", fields.len()));
        };
        let weekday_bits = field(weekdays, 0, 7, &WEEKDAYS)?;
        Ok(Self {
            minutes: field(minutes, 0, 59, &[])?,
            hours: field(hours, 0, 23, &[])?,
            days: field(days, 1, 31, &[])?,
            months: field(months, 1, 12, &MONTHS)?,
            // Sunday is 0 and 7.
            weekdays: (weekday_bits | weekday_bits >> 7) & 0x7f,
            any_day: is_any(days),
            any_weekday: is_any(weekdays),
        })
    }

    /// The first time after this one.
    pub(super) fn next(&self, after: &Zoned) -> Option<Zoned> {
        let first = after.date();
        let dates = (0..DAYS_MAX).filter_map(|days| first.checked_add(days.days()).ok());
        dates.filter(|date| self.has(*date)).find_map(|date| {
            let mut times = self.times().filter_map(|(h, m)| at(date, h, m, after));
            times.find(|time| time > after)
        })
    }

    /// The last time that is not after this one.
    pub(super) fn latest(&self, until: &Zoned) -> Option<Zoned> {
        let last = until.date();
        let dates = (0..DAYS_MAX).filter_map(|days| last.checked_sub(days.days()).ok());
        dates.filter(|date| self.has(*date)).find_map(|date| {
            let times = self.times().filter_map(|(h, m)| at(date, h, m, until));
            times.filter(|time| time <= until).last()
        })
    }

    fn has(&self, date: Date) -> bool {
        let day = self.days >> date.day() & 1 == 1;
        let weekday = self.weekdays >> date.weekday().to_sunday_zero_offset() & 1 == 1;
        let fits = match (self.any_day, self.any_weekday) {
            (false, false) => day || weekday,
            _ => day && weekday,
        };
        fits && self.months >> date.month() & 1 == 1
    }

    fn times(&self) -> impl Iterator<Item = (i8, i8)> {
        let (minutes, hours) = (self.minutes, self.hours);
        let hours = (0..24_i8).filter(move |hour| hours >> hour & 1 == 1);
        hours.flat_map(move |hour| {
            let minutes = (0..60_i8).filter(move |minute| minutes >> minute & 1 == 1);
            minutes.map(move |minute| (hour, minute))
        })
    }
}

fn at(date: Date, hour: i8, minute: i8, like: &Zoned) -> Option<Zoned> {
    date.at(hour, minute, 0, 0).to_zoned(like.time_zone().clone()).ok()
}

fn is_any(text: &str) -> bool {
    text.starts_with('*') || text == "?"
}

/// The bits of one field: `*`, `5`, `1-5`, `*/15`, `mon-fri`, and lists of these.
fn field(text: &str, lower: u32, upper: u32, names: &[&str]) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a field of a schedule from {lower} to {upper}");
    let value = |word: &str| {
        let word = word.to_lowercase();
        // Days of the week count from 0, months from 1.
        let named = names.iter().position(|name| *name == word).map(|at| at as u32 + lower);
        named
            .or_else(|| word.parse().ok())
            .filter(|n| (lower..=upper).contains(n))
            .ok_or_else(wrong)
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse().map_err(|_not_a_number| wrong())?),
            None => (part, 1_usize),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (value(first)?, value(last)?),
            None if is_any(range) => (lower, upper),
            // From there on, if there is a step.
            None if part.contains('/') => (value(range)?, upper),
            None => (value(range)?, value(range)?),
        };
        if first > last || step == 0 {
            return Err(wrong());
        }
        bits |= (first..=last).step_by(step).fold(0, |bits, value| bits | 1 << value);
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::civil::DateTime;
    use k8s_openapi::jiff::tz::TimeZone;

    use super::*;

    #[track_caller]
    fn check(schedule: &str, from: &str, next: &str, latest: &str) {
        let schedule = Schedule::parse(schedule).unwrap();
        let from: DateTime = from.parse().unwrap();
        let from = from.to_zoned(TimeZone::UTC).unwrap();
        let show = |time: Option<Zoned>| {
            time.map_or(String::new(), |time| time.strftime("%Y-%m-%dT%H:%M").to_string())
        };
        assert_eq!(
            (show(schedule.next(&from)), show(schedule.latest(&from))),
            (next.into(), latest.into())
        );
    }

    #[test]
    fn times_before_and_after() {
        let now = "2026-11-20T12:34:56";
        check("* * * * *", now, "2026-11-20T12:35", "2026-11-20T12:34");
        check("*/15 * * * *", now, "2026-11-20T12:45", "2026-11-20T12:30");
        check("@hourly", now, "2026-11-20T13:00", "2026-11-20T12:00");
        check("0 3 * * mon-fri", now, "2026-11-23T03:00", "2026-11-20T03:00");
        check("0 0 13 * 5", now, "2026-11-27T00:00", "2026-11-20T00:00");
        check("30 6 1,15 jan,jul ?", now, "2027-01-01T06:30", "2026-07-15T06:30");
        check("0 0 29 2 *", now, "2028-02-29T00:00", "2024-02-29T00:00");
        check("0 0 31 2 *", now, "", "");
        check("0 0 * * 7", now, "2026-11-22T00:00", "2026-11-15T00:00");
        check("5/20 * * * *", now, "2026-11-20T12:45", "2026-11-20T12:25");
        check("34 12 * * *", "2026-11-20T12:34:00", "2026-11-21T12:34", "2026-11-20T12:34");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "a * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "@never",
        ] {
            assert!(Schedule::parse(text).is_err(), "{text:?}");
        }
    }
}
