"""The student: trained from a cache, without the teacher."""
