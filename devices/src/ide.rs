//! The PIIX4 IDE controller and its drives.
