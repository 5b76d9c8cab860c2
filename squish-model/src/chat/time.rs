//! The time that a template tells, and how it is written.

use std::fmt::{self, Write};

/// A time by the clock on the wall. What it is, is the caller's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct LocalTime {
    year: i64,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl LocalTime {
    /// The time of UTC `seconds` after 1970 began there. Elsewhere it is that of `seconds` and the offset of the zone.
    ///
    /// ```
    /// use squish_model::chat::LocalTime;
    ///
    /// assert_eq!(LocalTime::from_unix(1_720_278_249).to_string(), "2024-07-06 15:04:09");
    /// ```
    #[must_use]
    pub fn from_unix(seconds: i64) -> Self {
        let (days, second_of_day) = (seconds.div_euclid(86400), seconds.rem_euclid(86400) as u32);
        let (year, month, day) = civil(days);
        let (hour, rest) = (second_of_day / 3600, second_of_day % 3600);
        Self { year, month, day, hour, minute: rest / 60, second: rest % 60 }
    }

    /// Days since 1970 began.
    fn days(&self) -> i64 {
        // As `civil`, the other way.
        let year = self.year - i64::from(self.month <= 2);
        let (era, month) = (year.div_euclid(400), i64::from((self.month + 9) % 12));
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        era * 146_097 + day_of_era - 719_468
    }

    /// 0 is Sunday.
    fn weekday(&self) -> usize {
        (self.days() + 4).rem_euclid(7) as usize
    }

    /// 1 is the first of January.
    fn day_of_year(&self) -> i64 {
        self.days() - Self { month: 1, day: 1, ..*self }.days() + 1
    }
}

impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}

/// Year, month and day from days since 1970 began, in the Gregorian calendar.
///
/// Years are counted from March, so that the day that leap years add is the last one: then months have 153 days in five, and years
/// 146,097 in four hundred.
fn civil(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month + 2) / 5 + 1) as u32;
    let month = (if month < 10 { month + 3 } else { month - 9 }) as u32;
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `time` as `format` says, with the directives of Python's `strftime` in its C locale; `%-d` and its like have no zeros in front.
///
/// The error names a directive that is not known.
pub(super) fn strftime(time: &LocalTime, format: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let is_bare = directive == Some('-');
        if is_bare {
            directive = chars.next();
        }
        let hour12 = (time.hour + 11) % 12 + 1;
        let (month, weekday) = (MONTHS[time.month as usize - 1], WEEKDAYS[time.weekday()]);
        let (value, width) = match directive {
            Some('d') => (i64::from(time.day), 2),
            Some('m') => (i64::from(time.month), 2),
            Some('H') => (i64::from(time.hour), 2),
            Some('I') => (i64::from(hour12), 2),
            Some('M') => (i64::from(time.minute), 2),
            Some('S') => (i64::from(time.second), 2),
            Some('j') => (time.day_of_year(), 3),
            Some('y') => (time.year.rem_euclid(100), 2),
            Some('w') => (time.weekday() as i64, 1),
            Some('u') => ((time.weekday() as i64 + 6) % 7 + 1, 1),
            other => {
                let text = match other {
                    Some('Y') => time.year.to_string(),
                    Some('e') => format!("{:2}", time.day),
                    Some('B') => month.to_owned(),
                    Some('b' | 'h') => month[..3].to_owned(),
                    Some('A') => weekday.to_owned(),
                    Some('a') => weekday[..3].to_owned(),
                    Some('p') => (if time.hour < 12 { "AM" } else { "PM" }).to_owned(),
                    Some('F') => strftime(time, "%Y-%m-%d")?,
                    Some('T' | 'X') => strftime(time, "%H:%M:%S")?,
                    Some('R') => strftime(time, "%H:%M")?,
                    Some('D' | 'x') => strftime(time, "%m/%d/%y")?,
                    Some('c') => strftime(time, "%a %b %e %H:%M:%S %Y")?,
                    Some('f') => "000000".to_owned(),
                    Some('Z' | 'z') => String::new(),
                    Some('n') => "\n".to_owned(),
                    Some('t') => "\t".to_owned(),
                    Some('%') => "%".to_owned(),
                    Some(other) => return Err(format!("unknown directive `%{other}` of a time")),
                    None => return Err("a format of time ends with `%`".to_owned()),
                };
                out.push_str(&text);
                continue;
            }
        };
        let width = if is_bare { 1 } else { width };
        let _ = write!(out, "{value:0width$}");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_of_four_centuries_follow_each_other() {
        let length = |year: i64, month: u32| match month {
            2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let (mut year, mut month, mut day) = (1800, 1, 1);
        for days in -62091..146_097 {
            assert_eq!(civil(days), (year, month, day), "{days}");
            let time = LocalTime::from_unix(days * 86400 + 86399);
            assert_eq!((time.days(), time.hour, time.second), (days, 23, 59));
            day += 1;
            if day > length(year, month) {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn each_directive_is_written_as_python_writes_it() {
        let time = LocalTime::from_unix(1_720_278_249);
        for (format, want) in [
            ("%d %b %Y", "06 Jul 2024"),
            ("%A, %B %-d", "Saturday, July 6"),
            ("%a %e", "Sat  6"),
            ("%H:%M:%S|%I %p|%-I", "15:04:09|03 PM|3"),
            ("%j %y %w %u %m %-m", "188 24 6 6 07 7"),
            ("%F %T %R %D %%", "2024-07-06 15:04:09 15:04 07/06/24 %"),
            ("%c", "Sat Jul  6 15:04:09 2024"),
            ("no directive, é", "no directive, é"),
        ] {
            assert_eq!(strftime(&time, format).as_deref(), Ok(want), "{format}");
        }
        let midnight = LocalTime::from_unix(0);
        assert_eq!(strftime(&midnight, "%I %p %j %w").as_deref(), Ok("12 AM 001 4"));
        assert!(strftime(&time, "%Q").is_err() && strftime(&time, "%").is_err());
    }
}
